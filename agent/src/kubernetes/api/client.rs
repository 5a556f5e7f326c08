//! The client of the API server, and how its requests fare.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ClientBuilder, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::{BoxError, Service, ServiceExt as _};

use super::connector::Connector;
use crate::dns::Resolver;
use crate::kubernetes::ClusterConfig;
use crate::sockets::SocketFactory;

/// Longer than any pause that a server makes: it ends each watch before (after 290 s). What is gone
/// without a word is noticed sooner, by the keepalive of the connection.
const READ_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(295);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The service account of the pod.
    #[error(
        "--kubernetes: this is no pod with a service account: {0}; elsewhere give --kubeconfig"
    )]
    InCluster(#[from] kube::config::InClusterError),
    /// The file of `--kubeconfig`.
    #[error("--kubeconfig {path}: {reason}")]
    Kubeconfig {
        /// The file.
        path: String,
        /// What is the matter with it.
        reason: String,
    },
    /// Certificates or credentials.
    #[error("--kubernetes: what the API server would be shown or known by cannot be used: {0}")]
    Credentials(#[from] kube::Error),
}

/// A client of the API server. Clones share connections.
#[derive(Clone)]
pub struct Api(Client);

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Api")
    }
}

impl Api {
    /// A client as `config` says, on sockets of our own. To be called on a runtime. Tokens and the
    /// CA that Kubernetes rotates are read again from their files within a minute.
    ///
    /// # Errors
    /// What is configured cannot be read or used. Nothing is asked of the server.
    pub async fn new(
        config: &ClusterConfig,
        sockets: Arc<dyn SocketFactory>,
        resolver: Resolver,
    ) -> Result<Self, ApiError> {
        let config = match &config.kubeconfig {
            None => Config::incluster()?,
            Some(path) => {
                let options = KubeConfigOptions::default();
                let read = async {
                    let file = Kubeconfig::read_from(path)?;
                    Config::from_custom_kubeconfig(file, &options).await
                };
                read.await.map_err(|error| ApiError::Kubeconfig {
                    path: path.display().to_string(),
                    reason: error.to_string(),
                })?
            }
        };
        let connector = Connector { sockets, resolver };
        let connector = config.rustls_https_connector_with_connector(connector)?;
        let mut connector = TimeoutConnector::new(connector);
        connector.set_read_timeout(Some(READ_TIMEOUT));
        connector.set_write_timeout(config.write_timeout);
        let http: legacy::Client<_, Body> =
            legacy::Builder::new(TokioExecutor::new()).build(connector);
        let base = config.base_uri_layer();
        let headers = config.extra_headers_layer()?;
        let namespace = config.default_namespace.clone();
        let http = http.map_err(BoxError::from);
        let client = match config.auth_layer()? {
            Some(auth) => ClientBuilder::new(http, namespace)
                .with_layer(&headers)
                .with_layer(&auth)
                .with_layer(&base)
                .build(),
            None => ClientBuilder::new(http, namespace)
                .with_layer(&headers)
                .with_layer(&base)
                .build(),
        };
        Ok(Self(client))
    }

    /// A client that tells `observer` how each of its requests fares.
    pub(super) fn observed(&self, observer: Arc<dyn Observer>) -> Client {
        let observed = Observed {
            inner: self.0.clone(),
            observer,
        };
        Client::new(observed, self.0.default_namespace().to_owned())
    }

    /// A client that nobody looks at.
    pub(super) fn plain(&self) -> Client {
        self.0.clone()
    }
}

/// How a request fared.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Outcome {
    /// The server answered, be it that something is not there.
    Answered,
    /// It does not let us.
    Refused(String),
    /// It cannot be reached, or is not itself.
    Failed(String),
}

pub(super) trait Observer: Send + Sync {
    fn saw(&self, outcome: Outcome);
}

struct Observed {
    inner: Client,
    observer: Arc<dyn Observer>,
}

impl Service<Request<Body>> for Observed {
    type Response = Response<Body>;
    type Error = kube::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, kube::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), kube::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let inner = self.inner.clone();
        let observer = Arc::clone(&self.observer);
        Box::pin(async move {
            let result = inner.send(request).await;
            observer.saw(outcome(&result));
            result
        })
    }
}

fn outcome(result: &Result<Response<Body>, kube::Error>) -> Outcome {
    match result {
        Err(error) => Outcome::Failed(cause(error)),
        Ok(response) => match response.status().as_u16() {
            401 | 403 => Outcome::Refused(response.status().to_string()),
            429 | 500.. => Outcome::Failed(format!("it answers {}", response.status())),
            _ => Outcome::Answered,
        },
    }
}

/// The innermost reason, which the others only wrap.
pub(super) fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
