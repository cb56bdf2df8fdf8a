//! Which callers may see more than states and ids.

use crate::net::caller::Caller;

/// When reasons, tasks, runs, metadata and call stacks are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Disclosure {
    Never,
    /// To callers with the token.
    Token,
    /// To callers with the token, and to those on this host.
    Trusted,
    Always,
}

/// What a caller may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Audience {
    /// States, ids and counts.
    Public,
    /// Everything that is known.
    Full,
}

impl Disclosure {
    pub(super) const fn audience(self, caller: Caller) -> Audience {
        match (self, caller) {
            (Self::Always, _)
            | (Self::Token | Self::Trusted, Caller::Token)
            | (Self::Trusted, Caller::Local) => Audience::Full,
            _ => Audience::Public,
        }
    }
}

impl Audience {
    /// The value, if this audience may see it.
    pub(super) fn filter<T>(self, private: Option<T>) -> Option<T> {
        private.filter(|_| self == Self::Full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::caller::Stranger;

    #[test]
    fn who_sees_reasons() {
        let callers = [
            Caller::Token,
            Caller::Local,
            Caller::Stranger(Stranger::Proxy),
        ];
        for (disclosure, sees_all) in [
            (Disclosure::Never, [false, false, false]),
            (Disclosure::Token, [true, false, false]),
            (Disclosure::Trusted, [true, true, false]),
            (Disclosure::Always, [true, true, true]),
        ] {
            let audiences = callers.map(|caller| disclosure.audience(caller) == Audience::Full);
            assert_eq!(audiences, sees_all, "{disclosure:?}");
        }
    }
}
