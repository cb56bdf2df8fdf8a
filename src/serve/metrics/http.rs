//! The route of the metrics. Concurrent scrapes share one reading.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::http::header::{ACCEPT, VARY};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::Metrics;
use super::encoder::prometheus_text;
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
