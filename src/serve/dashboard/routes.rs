//! The routes of the dashboard.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Extension, Request, State as Shared};
use axum::http::header::{CONTENT_SECURITY_POLICY, REFERRER_POLICY};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

use super::stream::{self, StreamRequest};
use super::{Dashboard, FleetView, MAX_STREAMS};
use crate::net::connections::ConnectionState;
use crate::net::request::QueryParameters;
use crate::net::response::{RequestError, json_response, respond, text_response};
use crate::registry::Snapshot;
use crate::serve::disclosure::{Audience, Disclosure};
use crate::serve::selection::{Selection, View};
use crate::serve::views::{StoredWorkerView, WorkerView};
use crate::sync::printable::UNPRINTABLE;
use crate::sync::random::unpredictable;

const PAGE: &str = include_str!("page/index.html");
const STYLE: &str = include_str!("page/style.css");
/// One script, so that its files share a scope.
const SCRIPT: &str = concat!(
    "'use strict';(() => {\n",
    include_str!("page/text.js"),
    include_str!("page/address.js"),
    include_str!("page/rows.js"),
    include_str!("page/table.js"),
    include_str!("page/stack.js"),
    include_str!("page/details.js"),
    include_str!("page/head.js"),
    include_str!("page/events.js"),
    include_str!("page/connection.js"),
    "})();",
);

pub(super) fn router(dashboard: &Arc<Dashboard>) -> Router {
    let guard = middleware::from_fn_with_state(Arc::clone(dashboard), identify);
    Router::new()
        .route("/", get(page))
        .route("/v1/events", get(events))
        .route("/v1/worker/details", get(details))
        .route("/v1/worker/death", get(death))
        .route_layer(guard)
        .with_state(Arc::clone(dashboard))
}

/// Adds what the caller may see to the request. Refuses callers that may not see reasons if the live
/// views contain them, which all pages share.
async fn identify(
    Shared(dashboard): Shared<Arc<Dashboard>>,
    request: Request,
    next: Next,
) -> Response {
    let subject = &dashboard.subject;
    let (head, body) = request.into_parts();
    let Ok(caller) = subject.callers.identify(&head).await else {
        return RequestError::wrong_token().into_response();
    };
    let audience = subject.disclosure.audience(caller);
    if subject.disclosure == Disclosure::Trusted && audience == Audience::Public {
        let error = "use http://127.0.0.1 or http://localhost, or configure show_reasons()";
        return RequestError::new(StatusCode::MISDIRECTED_REQUEST, error).into_response();
    }
    let mut request = Request::from_parts(head, body);
    request.extensions_mut().insert(audience);
    next.run(request).await
}

async fn page(Shared(dashboard): Shared<Arc<Dashboard>>) -> Response {
    dashboard.start(&Handle::current());
    let Ok(nonce) = nonce() else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let flag = |value: bool| if value { "yes" } else { "no" };
    // The page itself contains no reported text. The script receives it over the stream and inserts
    // it as text.
    let page = PAGE
        .replace("{{nonce}}", &nonce)
        .replace("{{fleet}}", flag(dashboard.fleet.is_some()))
        .replace("{{shown}}", flag(dashboard.audience() == Audience::Full))
        .replace("{{style}}", STYLE)
        .replace("{{script}}", SCRIPT)
        .replace("{{unprintable}}", &unprintable());
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; \
         img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    );
    let Ok(policy) = HeaderValue::try_from(policy) else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let headers = [
        (CONTENT_SECURITY_POLICY, policy),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ];
    (
        headers,
        respond(StatusCode::OK, "text/html; charset=utf-8", page),
    )
        .into_response()
}

/// The characters that the page does not show as they are, for brackets in a regular expression.
fn unprintable() -> String {
    let code = |character: char| format!("\\u{{{:x}}}", u32::from(character));
    let ranges = UNPRINTABLE.iter();
    ranges
        .map(|(first, last)| format!("{}-{}", code(*first), code(*last)))
        .collect()
}

/// Identifies the page's own script and style. An injected script would have to guess it.
fn nonce() -> Result<String, getrandom::Error> {
    let (high, low) = (unpredictable()?, unpredictable()?);
    Ok(format!("{high:016x}{low:016x}"))
}

async fn events(
    Shared(dashboard): Shared<Arc<Dashboard>>,
    connection: Option<Extension<ConnectionState>>,
    headers: HeaderMap,
    query: QueryParameters,
) -> Result<Response, RequestError> {
    let fleet = dashboard.requested_fleet(&query)?;
    let lists = fleet.map_or(&dashboard.process, |fleet| &fleet.lists);
    let selection = Selection::from_query(&query)?;
    let Ok(permit) = Arc::clone(&dashboard.streams).try_acquire_owned() else {
        let error = format!("all {MAX_STREAMS} streams are in use; retry later");
        return Err(RequestError::busy(error));
    };
    if let Some(Extension(connection)) = connection {
        connection.streams();
    }
    dashboard.start(&Handle::current());
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    let request = StreamRequest {
        lists: Arc::clone(lists),
        list: lists.view(selection),
        rows: query.get("view").is_some(),
        after: last.or_else(|| query.get("after")).map(str::to_owned),
    };
    let body = stream::body(request, dashboard.closing.subscribe(), permit);
    dashboard.subscribed.notify_one();
    // Tells nginx not to buffer the stream.
    let unbuffered = [(
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    )];
    let response = respond(StatusCode::OK, "text/event-stream", body);
    Ok((unbuffered, response).into_response())
}

async fn details(
    Shared(dashboard): Shared<Arc<Dashboard>>,
    Extension(audience): Extension<Audience>,
    query: QueryParameters,
) -> Result<Response, RequestError> {
    let fleet = dashboard.requested_fleet(&query)?;
    let id = worker_id(&query)?;
    let details = match fleet {
        Some(fleet) => fleet
            .look_up(id.to_owned())
            .await?
            .map(|worker| json_response(StatusCode::OK, &StoredWorkerView::new(&worker, audience))),
        None => dashboard
            .snapshot(id)
            .await
            .map(|worker| json_response(StatusCode::OK, &WorkerView::new(&worker, audience))),
    };
    details.ok_or_else(|| RequestError::not_found("there is no worker with this id"))
}

async fn death(
    Shared(dashboard): Shared<Arc<Dashboard>>,
    Extension(audience): Extension<Audience>,
    query: QueryParameters,
) -> Result<Response, RequestError> {
    if audience == Audience::Public {
        let error = "call stacks are not shown; see show_reasons()";
        return Err(RequestError::new(StatusCode::FORBIDDEN, error));
    }
    let id = worker_id(&query)?;
    let incarnation = query.get("incarnation").map(str::parse::<u32>);
    let incarnation = incarnation
        .transpose()
        .map_err(|_| RequestError::bad_request("invalid incarnation; allowed: a number"))?;
    let Some(death) = dashboard.death(id, incarnation).await else {
        return Err(RequestError::not_found("no such death is known"));
    };
    let text = dashboard.panic_text(death).await?;
    Ok(text_response(StatusCode::OK, text))
}

fn worker_id(query: &QueryParameters) -> Result<&str, RequestError> {
    let id = query.get("worker");
    id.ok_or_else(|| RequestError::bad_request("missing parameter: worker"))
}

impl Dashboard {
    /// The fleet if its view is requested; `None` for the view of this process.
    fn requested_fleet(
        &self,
        query: &QueryParameters,
    ) -> Result<Option<&Arc<FleetView>>, RequestError> {
        let view = View::from_query(query, self.fleet.is_some(), View::Process)?;
        Ok(self.fleet.as_ref().filter(|_| view == View::Fleet))
    }

    async fn snapshot(&self, id: &str) -> Option<Snapshot> {
        let (registry, id) = (self.subject.registry.clone(), id.to_owned());
        // A snapshot may wait for the pacemaker.
        let read = spawn_blocking(move || Some(registry.get(&id)?.snapshot()));
        read.await.ok()?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_has_another_nonce() {
        assert_ne!(nonce().unwrap(), nonce().unwrap());
    }
}
