//! The metrics over HTTP: at most so old, and never more than one reading being made at a time,
//! however many ask.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, VARY};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

use super::Metrics;
use super::sheet::plain;

/// For so long, a reading is good for everybody.
const FRESH: Duration = Duration::from_millis(50);

/// `/metrics`, which answers with these.
pub(in crate::serve) fn routes(metrics: Metrics) -> Router {
    let scrapes = Arc::new(Scrapes {
        metrics,
        latest: Mutex::new(None),
    });
    let answer = async move |asked: HeaderMap| scrapes.answer(&asked).await;
    Router::new().route("/metrics", get(answer))
}

struct Scrapes {
    metrics: Metrics,
    latest: Mutex<Option<Latest>>,
}

struct Latest {
    read_at: Instant,
    openmetrics: Bytes,
    text: Bytes,
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
        let mut latest = self.latest.lock().await;
        if latest
            .as_ref()
            .is_none_or(|latest| latest.read_at.elapsed() >= FRESH)
        {
            let metrics = self.metrics.clone();
            // It waits for an overdue pacemaker, and for a store: not on the runtime's own thread.
            let read = spawn_blocking(move || {
                let openmetrics = metrics.openmetrics();
                let text = plain(&openmetrics);
                (openmetrics.into(), text.into())
            });
            let (openmetrics, text) = read.await.ok()?;
            *latest = Some(Latest {
                read_at: Instant::now(),
                openmetrics,
                text,
            });
        }
        latest.as_ref().map(|latest| {
            let body = if openmetrics {
                &latest.openmetrics
            } else {
                &latest.text
            };
            body.clone()
        })
    }
}
