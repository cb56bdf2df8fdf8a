//! The metrics over HTTP: at most so old, and never more than one reading being made at a time,
//! however many ask.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, VARY};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::Metrics;
use super::sheet::plain;
use crate::net::single_flight::SingleFlight;

/// `/metrics`, which answers with these.
pub(in crate::serve) fn routes(metrics: Metrics) -> Router {
    let scrapes = Arc::new(Scrapes {
        metrics,
        latest: SingleFlight::default(),
    });
    let answer = async move |asked: HeaderMap| scrapes.answer(&asked).await;
    Router::new().route("/metrics", get(answer))
}

struct Scrapes {
    metrics: Metrics,
    /// As OpenMetrics, and in the older format.
    latest: SingleFlight<(Bytes, Bytes)>,
}

impl Scrapes {
    /// In the format that is asked for: OpenMetrics if that is understood.
    async fn answer(&self, asked: &HeaderMap) -> Response {
        let openmetrics = asked
            .get_all(ACCEPT)
            .iter()
            .filter_map(|accepted| accepted.to_str().ok())
            .any(|accepted| accepted.contains("application/openmetrics-text"));
        let kind = if openmetrics {
            Metrics::OPENMETRICS
        } else {
            Metrics::TEXT
        };
        let Some(body) = self.body(openmetrics).await else {
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        };
        let headers = [
            (CONTENT_TYPE, HeaderValue::from_static(kind)),
            (CACHE_CONTROL, HeaderValue::from_static("no-store")),
            (VARY, HeaderValue::from_static("accept")),
        ];
        (headers, body).into_response()
    }

    async fn body(&self, openmetrics: bool) -> Option<Bytes> {
        let metrics = self.metrics.clone();
        // It waits for an overdue pacemaker, and for a store.
        let read = move || {
            let openmetrics = metrics.openmetrics();
            let text = plain(&openmetrics);
            (openmetrics.into(), text.into())
        };
        let bodies = self.latest.get(read).await?;
        let body = if openmetrics { &bodies.0 } else { &bodies.1 };
        Some(body.clone())
    }
}
