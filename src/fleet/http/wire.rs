//! What [`HttpStore`](super::HttpStore) and the coordinator say to each other.
//!
//! A request is a JSON object with the `version` of this protocol. Names and units are those of
//! everything else that is reported: see `serial.rs`.

use std::fmt;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, Serializer};
use serde::{Deserialize as Read, Serialize as Write};

use crate::health::State;
use crate::serial;

pub(crate) use super::items::*;

/// What both sides have to speak.
pub(crate) const VERSION: u32 = 1;
/// The largest body of a request of this protocol.
pub(crate) const LARGEST_REQUEST: usize = 4 * 1024 * 1024;
/// A page of a list ends with the worker that makes it larger than this.
pub(crate) const LARGEST_PAGE: usize = 8 * 1024 * 1024;
/// The most workers on a page.
pub(crate) const MOST_ON_PAGE: usize = 1_000;
/// The most items in one request.
pub(crate) const MOST_ITEMS: usize = 5_000;

/// More metadata of one worker is not even read. (How much is allowed is decided elsewhere.)
const MOST_PAIRS: usize = 4_096;

/// A request about many.
#[derive(Debug, Read, Write)]
pub(crate) struct Items<T> {
    pub version: u32,
    pub items: Vec<T>,
    /// For how long leases are to be renewed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_s: Option<Seconds>,
}

/// The answer to it, in the same order.
#[derive(Debug, Read, Write)]
pub(crate) struct Answers<A> {
    pub answers: Vec<A>,
}

#[derive(Debug, Read, Write)]
pub(crate) struct One<T> {
    pub version: u32,
    pub what: T,
}

#[derive(Debug, Read)]
pub(crate) struct Versioned {
    pub version: u32,
}

#[derive(Debug, Read)]
pub(crate) struct Page {
    pub workers: Vec<StoredWire>,
    pub more: bool,
}

/// A duration as a number of seconds. One that is too long to be kept is the longest there is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Seconds(pub Duration);

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.0.as_secs_f64())
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let seconds = f64::deserialize(deserializer)?;
        Self::new(seconds).ok_or_else(|| de::Error::custom("a duration is 0 s or more"))
    }
}

impl Seconds {
    pub(crate) fn new(seconds: f64) -> Option<Self> {
        let is_duration = seconds >= 0.0;
        is_duration.then(|| Self(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)))
    }
}

/// Metadata as an object, in its order; the last value for a name counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Pairs(pub Vec<(String, String)>);

impl Serialize for Pairs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serial::Pairs(&self.0).serialize(serializer)
    }
}

impl Pairs {
    pub(crate) fn set(&mut self, name: String, value: String) {
        match self.0.iter_mut().find(|(other, _)| *other == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name, value)),
        }
    }
}

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Pairs, M::Error> {
                let mut pairs = Pairs::default();
                while let Some((name, value)) = map.next_entry()? {
                    // Many names would make the search for the same one slow.
                    if pairs.0.len() > MOST_PAIRS {
                        return Err(de::Error::custom("too many metadata entries"));
                    }
                    pairs.set(name, value);
                }
                Ok(pairs)
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

/// A state by its name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StateName(pub State);

impl Serialize for StateName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for StateName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let state = State::ALL.into_iter().find(|state| state.name() == name);
        state
            .map(Self)
            .ok_or_else(|| de::Error::custom("not the name of a state"))
    }
}
