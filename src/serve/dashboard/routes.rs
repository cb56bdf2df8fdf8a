//! What the dashboard answers, and to whom.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, Request, State as Shared};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, RETRY_AFTER,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;
use tokio::runtime::Handle;

use super::death::{self, Trouble};
use super::stream::{self, Wish};
use super::{Dashboard, MOST_STREAMS, Refusal};
use crate::serve::disclosure::Disclosure;
use crate::serve::probes::{one, told, withhold};
use crate::sync::random::random;

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// When there are too many streams, or a call stack takes too long: when to come again, in seconds.
const COME_AGAIN: HeaderValue = HeaderValue::from_static("10");

type Asked = Query<Vec<(String, String)>>;

pub(super) fn router(dashboard: &Arc<Dashboard>) -> Router {
    let admit = middleware::from_fn_with_state(Arc::clone(dashboard), admit);
    Router::new()
        .route("/", get(page))
        .route("/v1/events", get(events))
        .route("/v1/worker/details", get(details))
        .route("/v1/worker/death", get(death_of))
        .route_layer(admit)
        .with_state(Arc::clone(dashboard))
}

/// Turns away who calls this host by a strange name.
async fn admit(
    Shared(dashboard): Shared<Arc<Dashboard>>,
    request: Request,
    next: Next,
) -> Response {
    if dashboard.disclosure == Disclosure::Locals
        && !dashboard.disclosure.includes(request.headers())
    {
        let error = "open it as http://127.0.0.1 or http://localhost, or decide with \
                     show_reasons() what others may see";
        return Refusal(StatusCode::MISDIRECTED_REQUEST, error).into_response();
    }
    next.run(request).await
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        told(self.0, &json!({ "error": self.1 }))
    }
}

async fn page(Shared(dashboard): Shared<Arc<Dashboard>>) -> Response {
    dashboard.start(&Handle::current());
    let nonce = nonce();
    // Nothing that anybody reported is in the page itself: it comes over the stream, and is put in
    // as text.
    let page = PAGE
        .replace("{{nonce}}", &nonce)
        .replace(
            "{{fleet}}",
            if dashboard.fleet.is_some() {
                "yes"
            } else {
                "no"
            },
        )
        .replace("{{shown}}", if dashboard.shown() { "yes" } else { "no" })
        .replace("{{style}}", STYLE)
        .replace("{{script}}", SCRIPT);
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; \
         img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    );
    let Ok(policy) = HeaderValue::try_from(policy) else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let headers = [
        (
            CONTENT_TYPE,
            HeaderValue::from_static("text/html; charset=utf-8"),
        ),
        (CONTENT_SECURITY_POLICY, policy),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (headers, page).into_response()
}

/// Identifies the page's own script and style. No other party can put anything into the page that would
/// have to guess it.
fn nonce() -> String {
    format!("{:016x}{:016x}", random(), random())
}

async fn events(
    Shared(dashboard): Shared<Arc<Dashboard>>,
    headers: HeaderMap,
    Query(asked): Asked,
) -> Response {
    let board = match dashboard.fleet(&asked) {
        Ok(Some(fleet)) => &fleet.board,
        Ok(None) => &dashboard.process,
        Err(refusal) => return refusal.into_response(),
    };
    let Ok(place) = Arc::clone(&dashboard.streams).try_acquire_owned() else {
        let error = format!("{MOST_STREAMS} streams are open; come again");
        return busy(&error);
    };
    dashboard.start(&Handle::current());
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    let wish = Wish {
        board: Arc::clone(board),
        rows: one(&asked, "view").is_some(),
        after: last.or_else(|| one(&asked, "after")).map(str::to_owned),
    };
    let body = stream::body(wish, dashboard.closing.subscribe(), place);
    dashboard.joined.notify_one();
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        // A proxy is not to collect it first.
        (
            HeaderName::from_static("x-accel-buffering"),
            HeaderValue::from_static("no"),
        ),
    ];
    (headers, body).into_response()
}

/// All that is known of one worker, as far as who asks may know it.
async fn details(Shared(dashboard): Shared<Arc<Dashboard>>, Query(asked): Asked) -> Response {
    let found = match (dashboard.fleet(&asked), one(&asked, "worker")) {
        (Err(refusal), _) => return refusal.into_response(),
        (Ok(_), None) => return missing_worker(),
        (Ok(Some(fleet)), Some(id)) => {
            let workers = Arc::clone(&fleet.state.lock().workers);
            let worker = workers.iter().find(|worker| worker.key.id == id);
            worker.and_then(|worker| serde_json::to_value(worker).ok())
        }
        (Ok(None), Some(id)) => dashboard.snapshot(id).await,
    };
    let Some(mut value) = found else {
        return nothing("there is no worker with this id");
    };
    if !dashboard.shown() {
        withhold(&mut value);
    }
    told(StatusCode::OK, &value)
}

/// How a worker died, with its call stack.
async fn death_of(Shared(dashboard): Shared<Arc<Dashboard>>, Query(asked): Asked) -> Response {
    if !dashboard.shown() {
        let error = json!({"error": "call stacks are withheld; see show_reasons()"});
        return told(StatusCode::FORBIDDEN, &error);
    }
    let Some(id) = one(&asked, "worker") else {
        return missing_worker();
    };
    let incarnation = match one(&asked, "incarnation").map(str::parse::<u32>) {
        None => None,
        Some(Ok(incarnation)) => Some(incarnation),
        Some(Err(_)) => {
            let error = json!({"error": "invalid incarnation; allowed: a number"});
            return told(StatusCode::BAD_REQUEST, &error);
        }
    };
    let Some(death) = dashboard.death(id, incarnation).await else {
        return nothing("no such death is remembered");
    };
    match death::tell(death, Arc::clone(&dashboard.resolving)).await {
        Ok(text) => {
            let headers = [
                (
                    CONTENT_TYPE,
                    HeaderValue::from_static("text/plain; charset=utf-8"),
                ),
                (CACHE_CONTROL, HeaderValue::from_static("no-store")),
                (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
            ];
            (headers, text).into_response()
        }
        Err(Trouble::None) => nothing("it did not panic, so there is no call stack"),
        Err(Trouble::Busy) => busy("call stacks are being resolved; come again"),
    }
}

fn missing_worker() -> Response {
    let error = json!({"error": "which worker? ?worker=ID"});
    told(StatusCode::BAD_REQUEST, &error)
}

fn nothing(error: &str) -> Response {
    told(StatusCode::NOT_FOUND, &json!({ "error": error }))
}

fn busy(error: &str) -> Response {
    let mut response = told(StatusCode::SERVICE_UNAVAILABLE, &json!({ "error": error }));
    response.headers_mut().insert(RETRY_AFTER, COME_AGAIN);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_pages_have_the_same_nonce() {
        assert_ne!(nonce(), nonce());
    }
}
