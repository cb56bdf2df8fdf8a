//! The routes of the probes, and of the health of one or all workers.

use std::sync::Arc;

use axum::Router;
use axum::extract::{FromRequestParts, State as Shared};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::readings::{CheckResult, Readings};
use crate::health::Preset;
use crate::net::caller::{Caller, Callers};
use crate::net::request::QueryParameters;
use crate::net::response::{RequestError, json_response, text_response};
use crate::serve::disclosure::{Audience, Disclosure};
use crate::serve::selection::{Selection, View};
use crate::serve::views::{ListView, ProcessView, WorkerHealthView};
use crate::sync::printable::Printable;

const DEFAULT_PAGE: usize = 100;
const LARGEST_PAGE: usize = 1_000;

struct HealthService {
    readings: Readings,
    disclosure: Disclosure,
    callers: Callers,
}

impl HealthService {
    async fn checks(&self, preset: Preset) -> Vec<CheckResult> {
        self.readings
            .checks(&self.readings.policies.of(preset))
            .await
    }
}

type SharedService = Shared<Arc<HealthService>>;

struct RequestContext {
    query: QueryParameters,
    audience: Audience,
}

impl RequestContext {
    async fn new(
        parts: &mut Parts,
        service: &HealthService,
        caller: Caller,
    ) -> Result<Self, Response> {
        let query = QueryParameters::from_request_parts(parts, &()).await;
        Ok(Self {
            query: query.map_err(IntoResponse::into_response)?,
            audience: service.disclosure.audience(caller),
        })
    }
}

impl FromRequestParts<Arc<HealthService>> for RequestContext {
    type Rejection = Response;

    async fn from_request_parts(
        parts: &mut Parts,
        service: &Arc<HealthService>,
    ) -> Result<Self, Self::Rejection> {
        let caller = service.callers.identify(parts).await;
        let caller = caller.map_err(|_| RequestError::wrong_token().into_response())?;
        Self::new(parts, service, caller).await
    }
}

/// A request of a probe, whatever token it carries: it must be answered at once, and must not tell
/// whether a token is right.
struct ProbeRequest(RequestContext);

impl FromRequestParts<Arc<HealthService>> for ProbeRequest {
    type Rejection = Response;

    async fn from_request_parts(
        parts: &mut Parts,
        service: &Arc<HealthService>,
    ) -> Result<Self, Self::Rejection> {
        let caller = Caller::without_token(parts);
        RequestContext::new(parts, service, caller).await.map(Self)
    }
}

pub(super) fn router(readings: Readings, disclosure: Disclosure, callers: Callers) -> Router {
    Router::new()
        .route("/v1/worker/health", get(health))
        .route("/v1/workers", get(workers))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/startupz", get(startupz))
        .with_state(Arc::new(HealthService {
            readings,
            disclosure,
            callers,
        }))
}

async fn livez(service: SharedService, ProbeRequest(request): ProbeRequest) -> Response {
    request.probe_response(service.checks(Preset::Liveness).await)
}

async fn startupz(service: SharedService, ProbeRequest(request): ProbeRequest) -> Response {
    request.probe_response(service.checks(Preset::Startup).await)
}

async fn readyz(service: SharedService, ProbeRequest(request): ProbeRequest) -> Response {
    let mut checks = service.checks(Preset::Readiness).await;
    checks.extend(service.readings.application_checks().await);
    request.probe_response(checks)
}

async fn health(service: SharedService, request: RequestContext) -> Result<Response, RequestError> {
    let Some(id) = request.query.get("worker") else {
        let process = service.readings.process().await;
        let policy = service.readings.policies.health();
        return Ok(match request.audience {
            Audience::Public => {
                let view = ProcessView::public(&process, &policy);
                json_response(status(view.alive), &view)
            }
            Audience::Full => {
                let view = ProcessView::full(&process, &policy);
                json_response(status(view.alive), &view)
            }
        });
    };
    let worker = service.readings.worker(id).await;
    let worker =
        worker.ok_or_else(|| RequestError::not_found("there is no worker with this id"))?;
    let view = WorkerHealthView::new(&worker, request.audience);
    Ok(json_response(status(view.alive), &view))
}

async fn workers(
    service: SharedService,
    request: RequestContext,
) -> Result<Response, RequestError> {
    let limit = match request.query.get("limit").map(str::parse::<usize>) {
        None => DEFAULT_PAGE,
        Some(Ok(limit @ 1..=LARGEST_PAGE)) => limit,
        Some(_) => {
            let error = format!("invalid limit; allowed: 1 to {LARGEST_PAGE}");
            return Err(RequestError::bad_request(error));
        }
    };
    let after = request.query.get("after").unwrap_or_default();
    let audience = request.audience;
    let fleet = service.readings.fleet.as_ref();
    let default = fleet.map_or(View::Process, |_| View::Fleet);
    let view = View::from_query(&request.query, fleet.is_some(), default)?;
    if let Some(fleet) = fleet.filter(|_| view == View::Fleet) {
        let mut filter = Selection::from_query(&request.query)?.filter().limit(limit);
        filter.after_state = None;
        filter.after = Some(after.to_owned()).filter(|id| !id.is_empty());
        let page = fleet.page(filter, audience).await?;
        let summary = fleet.summary().await?;
        let list = ListView::of_fleet(&summary, page, audience);
        return Ok(json_response(StatusCode::OK, &list));
    }
    let process = service.readings.process().await;
    let page = service.readings.page(after, limit, audience).await;
    let list = ListView::of_process(&process.summary, page, audience);
    Ok(json_response(StatusCode::OK, &list))
}

const fn status(passed: bool) -> StatusCode {
    if passed {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

impl RequestContext {
    /// In the format of the health endpoints of Kubernetes' own components.
    fn probe_response(&self, mut checks: Vec<CheckResult>) -> Response {
        checks.retain(|check| !self.query.get_all("exclude").any(|name| name == check.name));
        let passed = checks.iter().all(|check| check.failure.is_none());
        let mut text = String::new();
        if !passed || self.query.get("verbose").is_some() {
            for check in &checks {
                // The application chooses names and reasons, and may pass on what others report.
                let name = Printable(&check.name);
                text.push_str(&match &check.failure {
                    None => format!("[+]{name} ok"),
                    Some(reason) if self.audience == Audience::Full => {
                        format!("[-]{name} failed: {}", Printable(reason))
                    }
                    Some(_) => format!("[-]{name} failed: reason withheld"),
                });
                let tolerated = self.audience.filter(check.tolerated.as_deref());
                if let Some(tolerated) = tolerated {
                    text.push_str(&format!("; tolerated: {}", Printable(tolerated)));
                }
                text.push('\n');
            }
            text.push_str(if passed { "ok\n" } else { "failed\n" });
        } else {
            text.push_str("ok");
        }
        text_response(status(passed), text)
    }
}
