//! What probes ask over HTTP, and what they are told.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequestParts, Query, Request, State as Shared};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::disclosure::Disclosure;
use super::view::{Outcome, Views};

/// No answer takes longer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Workers on one page.
const PAGE: usize = 100;
const LONGEST_PAGE: usize = 1_000;

struct Desk {
    views: Views,
    disclosure: Disclosure,
}

/// What is asked, and whether reasons are shown to who asks.
struct Asked {
    query: Vec<(String, String)>,
    shows: bool,
}

impl FromRequestParts<Arc<Desk>> for Asked {
    type Rejection = QueryRejection;

    async fn from_request_parts(
        parts: &mut Parts,
        desk: &Arc<Desk>,
    ) -> Result<Self, Self::Rejection> {
        let Query(query) = Query::from_request_parts(parts, desk).await?;
        let shows = desk.disclosure.includes(&parts.headers);
        Ok(Self { query, shows })
    }
}

pub(super) fn router(views: Views, disclosure: Disclosure) -> Router {
    Router::new()
        .route("/v1/worker/health", get(health))
        .route("/v1/workers", get(workers))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/startupz", get(startupz))
        .with_state(Arc::new(Desk { views, disclosure }))
}

/// No answer takes longer, whatever it waits for. (The dashboard's streams go on after theirs.)
pub(super) async fn in_time(request: Request, next: Next) -> Response {
    let answered = timeout(ANSWER_TIMEOUT, next.run(request)).await;
    answered.unwrap_or_else(|_| {
        let error = format!("no answer in {ANSWER_TIMEOUT:?}");
        told(StatusCode::SERVICE_UNAVAILABLE, &json!({ "error": error }))
    })
}

async fn livez(Shared(desk): Shared<Arc<Desk>>, asked: Asked) -> Response {
    let view = desk.views.get().await;
    let found = view.process.findings();
    let checks = vec![
        ("pacemaker".to_owned(), found.pacemaker),
        ("workers".to_owned(), found.workers),
    ];
    asked.probe(checks)
}

async fn readyz(Shared(desk): Shared<Arc<Desk>>, asked: Asked) -> Response {
    let view = desk.views.get().await;
    let found = view.process.findings();
    let mut checks = vec![
        ("pacemaker".to_owned(), found.pacemaker),
        ("workers".to_owned(), found.workers),
        ("started".to_owned(), found.started),
        ("expected".to_owned(), found.expected),
        (
            "shutdown".to_owned(),
            view.process
                .draining
                .then(|| "it is shutting down".to_owned()),
        ),
    ];
    checks.extend(desk.views.checks().await);
    asked.probe(checks)
}

async fn startupz(Shared(desk): Shared<Arc<Desk>>, asked: Asked) -> Response {
    let view = desk.views.get().await;
    let found = view.process.findings();
    // A worker that died while it was being set up has not started either.
    let checks = vec![
        ("pacemaker".to_owned(), found.pacemaker),
        ("workers".to_owned(), found.workers),
        ("started".to_owned(), found.started),
        ("expected".to_owned(), found.expected),
    ];
    asked.probe(checks)
}

async fn health(Shared(desk): Shared<Arc<Desk>>, asked: Asked) -> Response {
    let view = desk.views.get().await;
    let Some(id) = asked.one("worker") else {
        return asked.answer(view.to_json());
    };
    match desk.views.worker(id).await {
        Some(worker) => asked.answer(worker),
        None => told(
            StatusCode::NOT_FOUND,
            &json!({"error": "there is no worker with this id"}),
        ),
    }
}

async fn workers(Shared(desk): Shared<Arc<Desk>>, asked: Asked) -> Response {
    let limit = match asked.one("limit").map(str::parse::<usize>) {
        None => PAGE,
        Some(Ok(limit @ 1..=LONGEST_PAGE)) => limit,
        Some(_) => {
            let error = format!("invalid limit; allowed: 1 to {LONGEST_PAGE}");
            return told(StatusCode::BAD_REQUEST, &json!({ "error": error }));
        }
    };
    let after = asked.one("after").unwrap_or_default();
    let view = desk.views.get().await;
    let page = desk.views.page(after, limit).await;
    let mut answer = view.totals();
    answer["workers"] = page.into();
    told(StatusCode::OK, &asked.shown(answer))
}

pub(super) fn one<'a>(asked: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let found = asked.iter().find(|(other, _)| other == name);
    found.map(|(_, value)| value.as_str())
}

impl Asked {
    fn one(&self, name: &str) -> Option<&str> {
        one(&self.query, name)
    }

    /// The answer of a probe, as Kubernetes' own components give it.
    fn probe(&self, mut checks: Vec<Outcome>) -> Response {
        let excluded: HashSet<&str> = self
            .query
            .iter()
            .filter(|(name, _)| name == "exclude")
            .map(|(_, value)| value.as_str())
            .collect();
        checks.retain(|(name, _)| !excluded.contains(name.as_str()));
        let failed = checks.iter().any(|(_, trouble)| trouble.is_some());
        let status = if failed {
            StatusCode::SERVICE_UNAVAILABLE
        } else {
            StatusCode::OK
        };
        if !failed && self.one("verbose").is_none() {
            return plain(status, "ok".to_owned());
        }
        let mut text = String::new();
        for (name, trouble) in &checks {
            text.push_str(&match trouble {
                None => format!("[+]{name} ok\n"),
                Some(reason) if self.shows => format!("[-]{name} failed: {reason}\n"),
                Some(_) => format!("[-]{name} failed: reason withheld\n"),
            });
        }
        text.push_str(if failed { "failed\n" } else { "ok\n" });
        plain(status, text)
    }

    /// 200 if it is alive, 503 if it is not.
    fn answer(&self, value: Value) -> Response {
        let alive = value["alive"] == Value::Bool(true);
        let status = if alive {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        told(status, &self.shown(value))
    }

    fn shown(&self, mut value: Value) -> Value {
        if !self.shows {
            withhold(&mut value);
        }
        value
    }
}

/// Takes out what strangers are not to know.
pub(super) fn withhold(value: &mut Value) {
    const WITHHELD: [&str; 9] = [
        "reason",
        "task",
        "run_id",
        "metadata",
        "last_death",
        "last_error",
        "missing",
        // Of workers in a store.
        "detail",
        "process",
    ];
    const COUNTS: [&str; 2] = ["stats_by_type", "groups"];
    match value {
        Value::Object(fields) => {
            for (name, inner) in fields {
                if COUNTS.contains(&name.as_str()) {
                    // By names that the application chose, and nothing but counts.
                } else if WITHHELD.contains(&name.as_str()) {
                    *inner = Value::Null;
                } else {
                    withhold(inner);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(withhold),
        _ => {}
    }
}

pub(super) fn told(status: StatusCode, value: &Value) -> Response {
    respond(status, "application/json", value.to_string())
}

fn plain(status: StatusCode, text: String) -> Response {
    respond(status, "text/plain; charset=utf-8", text)
}

fn respond(status: StatusCode, kind: &'static str, body: String) -> Response {
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static(kind)),
        // The truth of this moment.
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (status, headers, body).into_response()
}
