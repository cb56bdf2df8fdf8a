//! The route of the metrics, where concurrent scrapes share one reading, and the metrics of HTTP
//! servers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::body::Bytes;
use axum::http::header::{ACCEPT, VARY};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::Metrics;
use super::encoder::{Encoder, prometheus_text};
use crate::net::connections::ConnectionCounts;
use crate::net::refusals::{Refusals, Refused};
use crate::net::response::respond;
use crate::net::single_flight::SingleFlight;

pub(in crate::serve) fn routes(metrics: Metrics) -> Router {
    let scrape = Arc::new(Scrape {
        metrics,
        latest: SingleFlight::default(),
    });
    let handler = async move |headers: HeaderMap| scrape.respond(&headers).await;
    Router::new().route("/metrics", get(handler))
}

struct Scrape {
    metrics: Metrics,
    /// As OpenMetrics, and in the older format.
    latest: SingleFlight<(Bytes, Bytes)>,
}

impl Scrape {
    /// Responds with OpenMetrics if the client accepts it, and with the older format otherwise.
    async fn respond(&self, headers: &HeaderMap) -> Response {
        let metrics = self.metrics.clone();
        // Reading waits for an overdue pacemaker and for a store.
        let read = move || {
            let openmetrics = metrics.openmetrics();
            let text = prometheus_text(&openmetrics);
            (openmetrics.into(), text.into())
        };
        let Some(bodies) = self.latest.get(read).await else {
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        };
        let mut accepted = headers.get_all(ACCEPT).iter();
        let accepts_openmetrics = accepted.any(|value| {
            let value = value.to_str();
            value.is_ok_and(|value| value.contains("application/openmetrics-text"))
        });
        let (content_type, body) = if accepts_openmetrics {
            (Metrics::OPENMETRICS, &bodies.0)
        } else {
            (Metrics::TEXT, &bodies.1)
        };
        let vary = [(VARY, HeaderValue::from_static("accept"))];
        (vary, respond(StatusCode::OK, content_type, body.clone())).into_response()
    }
}

/// The figures of a server, and of coordinators.
#[derive(Clone, Debug, Default)]
pub(super) struct HttpFigures {
    pub(super) connections: Option<Arc<ConnectionCounts>>,
    refusals: Vec<Arc<Refusals>>,
}

impl HttpFigures {
    /// Unless they are counted already.
    pub(super) fn add_refusals(&mut self, refusals: &Arc<Refusals>) {
        if !self
            .refusals
            .iter()
            .any(|other| Arc::ptr_eq(other, refusals))
        {
            self.refusals.push(Arc::clone(refusals));
        }
    }

    pub(super) fn encode(&self, encoder: &mut Encoder<'_>) -> fmt::Result {
        if let Some(connections) = &self.connections {
            let ended = connections.ended.load(Ordering::Relaxed);
            let accepted = connections.accepted.load(Ordering::Relaxed);
            encoder.gauge(
                "http_connections",
                "Open connections to the health endpoint",
                accepted.saturating_sub(ended),
            )?;
            encoder.counter(
                "http_accepted_connections",
                "Connections that the health endpoint accepted",
                accepted,
            )?;
            encoder.counter(
                "http_displaced_connections",
                "Connections that the health endpoint closed because others needed their place",
                connections.displaced.load(Ordering::Relaxed),
            )?;
        }
        if self.refusals.is_empty() {
            return Ok(());
        }
        let samples = Refused::ALL.map(|refused| {
            let counts = self.refusals.iter().map(|refusals| refusals.get(refused));
            ([("reason", refused.name())], counts.sum::<u64>())
        });
        encoder.counters(
            "http_refused",
            "Requests that the coordinator refused because of who sent them",
            samples,
        )
    }
}
