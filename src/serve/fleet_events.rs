//! The route of the events of a store: for pages, scripts and notifications.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State as Shared};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::disclosure::Disclosure;
use super::views::EventPageView;
use crate::error::Error;
use crate::fleet::{EventFilter, EventPage, HeartbeatStore};
use crate::net::caller::Callers;
use crate::net::request::QueryParameters;
use crate::net::response::{RequestError, json_response};

/// Concurrent readings of the store: each occupies a thread.
const MAX_READINGS: usize = 4;
/// The time limit of a reading, its wait for a place included.
const TIMEOUT: Duration = Duration::from_secs(10);
const LARGEST_PAGE: usize = 1_000;
/// Bytes of the events on a page.
const LARGEST_BODY: usize = 8 * 1024 * 1024;

struct FleetEvents {
    store: Option<Arc<dyn HeartbeatStore>>,
    disclosure: Disclosure,
    callers: Callers,
    readings: Arc<Semaphore>,
}

pub(super) fn router(
    store: Option<Arc<dyn HeartbeatStore>>,
    disclosure: Disclosure,
    callers: Callers,
) -> Router {
    Router::new()
        .route("/v1/fleet/events", get(events))
        .with_state(Arc::new(FleetEvents {
            store,
            disclosure,
            callers,
            readings: Arc::new(Semaphore::new(MAX_READINGS)),
        }))
}

async fn events(
    Shared(shared): Shared<Arc<FleetEvents>>,
    query: QueryParameters,
    request: Request,
) -> Result<Response, RequestError> {
    let (head, _) = request.into_parts();
    let caller = shared.callers.identify(&head).await;
    let audience = shared
        .disclosure
        .audience(caller.map_err(|_| RequestError::wrong_token())?);
    let filter = filter(&query)?;
    let Some(store) = shared.store.clone() else {
        return Err(RequestError::not_found("no store is attached"));
    };
    match shared.read(store, filter).await? {
        Some(page) => Ok(json_response(
            StatusCode::OK,
            &EventPageView::new(&page, audience),
        )),
        None => Err(RequestError::not_found("the store keeps no events")),
    }
}

fn filter(query: &QueryParameters) -> Result<EventFilter, RequestError> {
    let mut filter = EventFilter::new();
    filter.after = number(query, "after")?;
    filter.before = number(query, "before")?;
    if let Some(limit) = number(query, "limit")? {
        if !(1..=LARGEST_PAGE).contains(&limit) {
            let error = format!("invalid limit; allowed: 1 to {LARGEST_PAGE}");
            return Err(RequestError::bad_request(error));
        }
        filter.limit = limit;
    }
    let level = query.get("level").map(log::Level::from_str).transpose();
    filter.level = level.map_err(|_| {
        RequestError::bad_request("invalid level; allowed: error, warn, info, debug")
    })?;
    let text = |name: &str| query.get(name).map(str::to_owned);
    filter.worker = text("worker");
    filter.worker_type = text("type");
    filter.group = text("group");
    Ok(filter)
}

fn number<T: FromStr>(query: &QueryParameters, name: &str) -> Result<Option<T>, RequestError> {
    let number = query.get(name).map(str::parse::<T>).transpose();
    number.map_err(|_| RequestError::bad_request(format!("invalid {name}; allowed: a number")))
}

impl FleetEvents {
    async fn read(
        &self,
        store: Arc<dyn HeartbeatStore>,
        filter: EventFilter,
    ) -> Result<Option<EventPage>, RequestError> {
        let readings = Arc::clone(&self.readings);
        let read = async move {
            // The semaphore is never closed.
            let permit = readings.acquire_owned().await.ok()?;
            let reading = spawn_blocking(move || {
                let mut page = store.events(&filter);
                if let Ok(Some(page)) = &mut page {
                    page.cut(&filter, LARGEST_BODY);
                }
                drop(permit);
                page
            });
            reading.await.ok()
        };
        match timeout(TIMEOUT, read).await {
            Ok(Some(Ok(page))) => Ok(page),
            Ok(Some(Err(Error::Invalid { .. }))) => {
                Err(RequestError::bad_request("the store refuses the request"))
            }
            // Its text may name hosts and users.
            Ok(Some(Err(_)) | None) => Err(RequestError::busy("the store fails; retry later")),
            Err(_) => Err(RequestError::busy("the store does not answer; retry later")),
        }
    }
}
