// The pages lie in docs/guide, where a repository shows them with links from file to file. Here, other
// definitions of the same links come before those at the end of each page, and take precedence: they
// lead to modules and items, which rustdoc checks. What a feature would add lies on docs.rs.
#![doc = include_str!("../../docs/embedded/tour.md")]
#![doc = include_str!("links/always.md")]
#![cfg_attr(feature = "sqlite", doc = include_str!("links/sqlite.md"))]
#![cfg_attr(feature = "postgres", doc = include_str!("links/postgres.md"))]
#![cfg_attr(feature = "http", doc = include_str!("links/http.md"))]
#![cfg_attr(feature = "prometheus", doc = include_str!("links/prometheus.md"))]
#![cfg_attr(feature = "systemd", doc = include_str!("links/systemd.md"))]
#![cfg_attr(feature = "beacon", doc = include_str!("links/beacon.md"))]
#![cfg_attr(all(feature = "systemd", feature = "beacon"), doc = include_str!("links/systemd_and_beacon.md"))]
#![doc = include_str!("links/elsewhere.md")]
#![doc = include_str!("../../docs/guide/README.md")]

/// Pages, with the feature that their items need.
macro_rules! pages {
    ($($(#[$condition:meta])* $name:ident: $file:literal,)*) => {
        $(
            $(#[$condition])*
            #[doc = include_str!("links/always.md")]
            #[cfg_attr(feature = "sqlite", doc = include_str!("links/sqlite.md"))]
            #[cfg_attr(feature = "postgres", doc = include_str!("links/postgres.md"))]
            #[cfg_attr(feature = "http", doc = include_str!("links/http.md"))]
            #[cfg_attr(feature = "prometheus", doc = include_str!("links/prometheus.md"))]
            #[cfg_attr(feature = "systemd", doc = include_str!("links/systemd.md"))]
            #[cfg_attr(feature = "beacon", doc = include_str!("links/beacon.md"))]
            #[cfg_attr(all(feature = "systemd", feature = "beacon"), doc = include_str!("links/systemd_and_beacon.md"))]
            #[doc = include_str!("links/elsewhere.md")]
            #[doc = include_str!($file)]
            pub mod $name {}
        )*
    };
}

pages! {
    in_the_process: "../../docs/guide/in-the-process.md",
    supervision: "../../docs/guide/supervision.md",
    shutdown: "../../docs/guide/shutdown.md",
    testing: "../../docs/guide/testing.md",
    fleet: "../../docs/guide/fleet.md",
    #[cfg(feature = "http")]
    #[doc = include_str!("../../docs/embedded/dashboard.md")]
    http: "../../docs/guide/http.md",
    security: "../../docs/guide/security.md",
    #[cfg(feature = "prometheus")]
    metrics: "../../docs/guide/metrics.md",
    #[cfg(all(feature = "systemd", feature = "beacon"))]
    systemd: "../../docs/guide/systemd.md",
    monitor: "../../docs/guide/monitor.md",
    capacity: "../../docs/guide/capacity.md",
    runbooks: "../../docs/guide/runbooks.md",
    troubleshooting: "../../docs/guide/troubleshooting.md",
    limitations: "../../docs/guide/limitations.md",
    glossary: "../../docs/glossary.md",
    design: "../../docs/DESIGN.md",
    benchmarks: "../../docs/BENCHMARKS.md",
    comparison: "../../docs/COMPARE.md",
    how_it_is_tested: "../../docs/TESTING.md",
}
