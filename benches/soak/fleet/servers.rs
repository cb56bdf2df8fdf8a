//! A primary and its standby, behind proxies.

use super::SCHEMA;
use super::proxy::Proxy;
use super::server::{Cluster, try_sql};

/// Two servers. The first proxy leads to one of them, the second one to the other, whichever is the
/// primary.
pub(crate) struct Servers {
    primary: Cluster,
    standby: Cluster,
    proxies: [Proxy; 2],
    /// The proxy of the primary.
    first: usize,
    synchronous: bool,
}

fn port(server: &Cluster) -> u16 {
    let url = server.url();
    let port = url
        .rsplit(':')
        .next()
        .and_then(|rest| rest.split('/').next());
    port.and_then(|port| port.parse().ok()).expect("a port")
}

impl Servers {
    pub(crate) fn start(synchronous: bool) -> Self {
        let primary = Cluster::start();
        let standby = primary.standby();
        if synchronous {
            primary.replicate_synchronously();
        }
        let servers = Self {
            primary,
            standby,
            proxies: [Proxy::start(), Proxy::start()],
            first: 0,
            synchronous,
        };
        servers.lead();
        servers
    }

    fn lead(&self) {
        self.proxies[self.first].forward_to(port(&self.primary));
        self.proxies[1 - self.first].forward_to(port(&self.standby));
    }

    /// The URL that the processes use.
    pub(crate) fn url(&self) -> String {
        let url = self.primary.url();
        let (user, _) = url.rsplit_once('@').expect("a user");
        let [a, b] = &self.proxies;
        format!(
            "{user}@{},{}/postgres?target_session_attrs=read-write",
            a.address, b.address
        )
    }

    /// The primary dies, its standby is promoted, and gets a standby of its own.
    pub(crate) fn fail_over(&mut self) {
        self.primary.kill();
        self.proxies[self.first].cut();
        self.standby.promote();
        self.first = 1 - self.first;
        let next = self.standby.standby();
        // The dead one is removed.
        self.primary = std::mem::replace(&mut self.standby, next);
        if self.synchronous {
            self.primary.replicate_synchronously();
        }
        self.lead();
    }

    pub(crate) fn cut(&self) {
        self.proxies.iter().for_each(Proxy::cut);
    }

    pub(crate) fn hang(&self, hangs: bool) {
        self.proxies.iter().for_each(|proxy| proxy.hang(hangs));
    }

    /// Locks the rows that this condition names, in another transaction, on a thread.
    pub(crate) fn lock(&self, table: &str, condition: &str, seconds: f64) {
        let url = self.primary.url();
        let statement = format!(
            "BEGIN; SELECT 1 FROM \"{SCHEMA}\".{table} WHERE {condition} FOR UPDATE; \
             SELECT pg_sleep({seconds}); COMMIT"
        );
        std::thread::spawn(move || {
            // The server may end first.
            drop(try_sql(&url, &statement));
        });
    }
}
