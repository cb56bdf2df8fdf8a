//! Which workers a request asks for.

use crate::fleet::WorkerFilter;
use crate::health::State;
use crate::net::request::QueryParameters;
use crate::net::response::RequestError;

/// Whose workers a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    /// The registry of this process.
    Process,
    /// The store.
    Fleet,
}

impl View {
    /// The value of `view`, or this default.
    pub(super) fn from_query(
        query: &QueryParameters,
        has_fleet: bool,
        default: Self,
    ) -> Result<Self, RequestError> {
        match query.get("view") {
            None => Ok(default),
            Some("process") => Ok(Self::Process),
            Some("fleet") if has_fleet => Ok(Self::Fleet),
            Some("fleet") => Err(RequestError::not_found("no store is attached")),
            Some(_) => Err(RequestError::bad_request(
                "invalid view; allowed: process, fleet",
            )),
        }
    }
}

/// Some workers of a registry or a store, as the parameters of a request name them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Selection {
    /// Empty: in any state. In the order of severity, so that equal selections are equal.
    states: Vec<State>,
    worker_type: Option<String>,
    group: Option<String>,
    search: Option<String>,
    /// The last worker of the page before, and its state, the worst first.
    after: Option<(State, String)>,
}

impl Selection {
    /// `state` (names with commas between them), `type`, `group` and `q`; with `after_state`, the page
    /// after the worker that `after_worker` names.
    pub(super) fn from_query(query: &QueryParameters) -> Result<Self, RequestError> {
        let parse = |name: &str| {
            State::from_name(name).ok_or_else(|| {
                let names = State::ALL.map(State::name).join(", ");
                RequestError::bad_request(format!("invalid state; allowed: {names}"))
            })
        };
        let names = query.get_all("state").flat_map(|names| names.split(','));
        let named: Vec<State> = names
            .filter(|name| !name.is_empty())
            .map(parse)
            .collect::<Result<_, _>>()?;
        let mut states = State::WORST_FIRST.to_vec();
        states.retain(|state| named.contains(state));
        let text = |name| query.get(name).map(str::to_owned);
        let after_state = query.get("after_state").map(parse).transpose()?;
        Ok(Self {
            states,
            worker_type: text("type"),
            group: text("group"),
            search: text("q").filter(|text| !text.is_empty()),
            after: after_state.zip(text("after_worker")),
        })
    }

    /// All workers, from the worst one on.
    pub(super) fn is_all(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn filter(&self) -> WorkerFilter {
        let mut filter = WorkerFilter::new();
        filter.states.clone_from(&self.states);
        filter.worker_type.clone_from(&self.worker_type);
        filter.group.clone_from(&self.group);
        filter.search.clone_from(&self.search);
        if let Some((state, id)) = &self.after {
            filter.after_state = Some(*state);
            filter.after = Some(id.clone());
        }
        filter
    }
}
