//! The admin port: `/metrics`, `/healthz`, `/readyz`, `/stat`.
//!
//! Read-only, and on a thread of its own: what it costs is never paid by a proposal or a record. The number of connections, the
//! wait for a request's head and the life of a connection have bounds.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};

use super::exposition;
use super::status::{NodeState, NodeStatus};
use crate::cluster::CatalogueView;
use crate::limits;
use crate::metrics::ShardMetrics;
use crate::request::cluster::ConsensusState;

/// What the admin port can see.
#[derive(Clone)]
pub struct Observed {
    /// The shards' counters.
    pub shards: Vec<Arc<ShardMetrics>>,
    /// The node.
    pub status: Arc<NodeStatus>,
    /// The catalogue.
    pub view: watch::Receiver<Arc<CatalogueView>>,
    /// The consensus as it is at the moment of a question.
    pub consensus: Arc<dyn Fn() -> ConsensusState + Send + Sync>,
}

/// The routes.
pub fn router(observed: Observed) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/stat", get(stat))
        .with_state(observed)
}

/// Serves until it is dropped. The listener must be non-blocking.
pub async fn serve(listener: TcpListener, observed: Observed) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the admin port can't be served"),
    };
    let app = router(observed);
    let places = Arc::new(Semaphore::new(limits::ADMIN_CONNECTIONS));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let app = app.clone();
                tokio::spawn(async move {
                    serve_connection(stream, app).await;
                    drop(place);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: others must end first.
                tracing::warn!(%error, "the admin port could not accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, app: Router) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(limits::ADMIN_HEADER_S))
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    // A peer that misbehaves loses its connection; there is nothing to do about it.
    let _ = tokio::time::timeout(Duration::from_secs(limits::ADMIN_CONNECTION_S), connection).await;
}

async fn metrics(State(observed): State<Observed>) -> impl IntoResponse {
    let view = Arc::clone(&observed.view.borrow());
    let text = exposition::prometheus_text(&observed.shards, &observed.status, &view);
    ([(header::CONTENT_TYPE, exposition::CONTENT_TYPE)], text)
}

async fn stat(State(observed): State<Observed>) -> impl IntoResponse {
    let view = Arc::clone(&observed.view.borrow());
    let value = exposition::stat_json(&observed.shards, &observed.status, &view, &(observed.consensus)());
    ([(header::CONTENT_TYPE, "application/json")], value.to_string())
}

/// Whether the process is worth keeping.
async fn healthz(State(observed): State<Observed>) -> impl IntoResponse {
    answer(observed.status.state(), |state| state != NodeState::Failed)
}

/// Whether clients should come.
async fn readyz(State(observed): State<Observed>) -> impl IntoResponse {
    answer(observed.status.state(), |state| state == NodeState::Ready)
}

fn answer(state: NodeState, good: impl Fn(NodeState) -> bool) -> (StatusCode, String) {
    let code = if good(state) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, format!("{}\n", state.name()))
}
