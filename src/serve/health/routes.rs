//! The routes of the probes, and of the health of one or all workers.

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequestParts, State as Shared};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use axum::routing::get;
use serde_json::Value;

use super::readings::{CheckResult, Readings};
use crate::health::Preset;
use crate::net::request::QueryParameters;
use crate::net::response::{RequestError, json_response, text_response};
use crate::serve::disclosure::{Disclosure, redact};

const DEFAULT_PAGE: usize = 100;
const LARGEST_PAGE: usize = 1_000;

struct HealthService {
    readings: Readings,
    disclosure: Disclosure,
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
    shows_reasons: bool,
}

impl FromRequestParts<Arc<HealthService>> for RequestContext {
    type Rejection = QueryRejection;

    async fn from_request_parts(
        parts: &mut Parts,
        service: &Arc<HealthService>,
    ) -> Result<Self, Self::Rejection> {
        Ok(Self {
            query: QueryParameters::from_request_parts(parts, service).await?,
            shows_reasons: service.disclosure.permits(&parts.headers),
        })
    }
}

pub(super) fn router(readings: Readings, disclosure: Disclosure) -> Router {
    Router::new()
        .route("/v1/worker/health", get(health))
        .route("/v1/workers", get(workers))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/startupz", get(startupz))
        .with_state(Arc::new(HealthService {
            readings,
            disclosure,
        }))
}

async fn livez(service: SharedService, request: RequestContext) -> Response {
    request.probe_response(service.checks(Preset::Liveness).await)
}

async fn startupz(service: SharedService, request: RequestContext) -> Response {
    request.probe_response(service.checks(Preset::Startup).await)
}

async fn readyz(service: SharedService, request: RequestContext) -> Response {
    let mut checks = service.checks(Preset::Readiness).await;
    checks.extend(service.readings.application_checks().await);
    request.probe_response(checks)
}

async fn health(service: SharedService, request: RequestContext) -> Result<Response, RequestError> {
    let process = service.readings.process().await;
    let health = match request.query.get("worker") {
        None => process.to_json(&service.readings.policies.health()),
        Some(id) => service
            .readings
            .worker(id)
            .await
            .ok_or_else(|| RequestError::not_found("there is no worker with this id"))?,
    };
    let status = status(health["alive"] == true);
    Ok(json_response(status, &request.disclose(health)))
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
    let mut list = service.readings.process().await.totals();
    list["workers"] = service.readings.page(after, limit).await.into();
    Ok(json_response(StatusCode::OK, &request.disclose(list)))
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
                let name = &check.name;
                text.push_str(&match &check.failure {
                    None => format!("[+]{name} ok"),
                    Some(reason) if self.shows_reasons => format!("[-]{name} failed: {reason}"),
                    Some(_) => format!("[-]{name} failed: reason withheld"),
                });
                let tolerated = check.tolerated.as_deref().filter(|_| self.shows_reasons);
                if let Some(tolerated) = tolerated {
                    text.push_str("; tolerated: ");
                    text.push_str(tolerated);
                }
                text.push('\n');
            }
            text.push_str(if passed { "ok\n" } else { "failed\n" });
        } else {
            text.push_str("ok");
        }
        text_response(status(passed), text)
    }

    fn disclose(&self, mut value: Value) -> Value {
        if !self.shows_reasons {
            redact(&mut value);
        }
        value
    }
}
