//! The client of the API server, and how its requests fare.

use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{Request, Response};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ClientBuilder, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use tokio::time::sleep;
use tower::{BoxError, Service, ServiceExt as _};

use super::connector::Connector;
use crate::dns::Resolver;
use crate::kubernetes::ClusterConfig;
use crate::name::Target;
use crate::sockets::SocketFactory;

/// After so long without a byte a connection is given up: a server has a bookmark for each watch every
/// minute. Whose kind has none resumes its watch, which costs little. A peer that is gone altogether is
/// noticed sooner, by the keepalive of the connection.
const SILENCE: Duration = Duration::from_secs(75);

/// The longest time that a server can have us come later.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

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
pub struct Api(Client, Option<Target>);

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
                    let authority = authority(&file);
                    let mut config = Config::from_custom_kubeconfig(file, &options).await?;
                    config.root_cert_file = authority;
                    Ok::<_, KubeconfigError>(config)
                };
                read.await.map_err(|error| ApiError::Kubeconfig {
                    path: path.display().to_string(),
                    reason: error.to_string(),
                })?
            }
        };
        let server = target(&config.cluster_url);
        let connector = Connector { sockets, resolver };
        let connector = config.rustls_https_connector_with_connector(connector)?;
        let mut connector = TimeoutConnector::new(connector);
        connector.set_read_timeout(Some(SILENCE));
        connector.set_write_timeout(config.write_timeout);
        let http: legacy::Client<_, Body> =
            legacy::Builder::new(TokioExecutor::new()).build(connector);
        let base = config.base_uri_layer();
        let headers = config.extra_headers_layer()?;
        let namespace = config.default_namespace.clone();
        let http = http.map_err(BoxError::from).and_then(in_its_time);
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
        Ok(Self(client, server))
    }

    /// Where the server is.
    pub fn server(&self) -> Option<Target> {
        self.1.clone()
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

/// The file of the authority that vouches for the server, where there is one.
fn authority(file: &Kubeconfig) -> Option<PathBuf> {
    let current = file.current_context.as_deref()?;
    let mut contexts = file.contexts.iter();
    let context = contexts.find(|context| context.name == current)?;
    let name = &context.context.as_ref()?.cluster;
    let mut clusters = file.clusters.iter();
    let cluster = clusters.find(|cluster| cluster.name == *name)?;
    let cluster = cluster.cluster.as_ref()?;
    let path = cluster.certificate_authority.as_ref();
    let path = path.filter(|_| cluster.certificate_authority_data.is_none());
    path.map(PathBuf::from)
}

/// Keeps an answer that has us come later until we may: whoever asked asks again after it.
async fn in_its_time<B>(answer: Response<B>) -> Result<Response<B>, BoxError> {
    if matches!(answer.status().as_u16(), 429 | 503)
        && let Some(after) = answer.headers().get(RETRY_AFTER)
        && let Some(seconds) = after.to_str().ok().and_then(|text| text.parse().ok())
    {
        sleep(Duration::from_secs(seconds).min(LONGEST_WAIT)).await;
    }
    Ok(answer)
}

/// Where the server of this address is, if that names a host.
fn target(url: &http::Uri) -> Option<Target> {
    let host = url.host()?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port = match url.scheme_str() {
        Some("http") => 80,
        _ => 443,
    };
    Some(Target {
        host: host.parse().ok()?,
        port: url.port_u16().unwrap_or(port),
    })
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
            403 => Outcome::Refused(response.status().to_string()),
            // Whoever we are may do it when our token is read again.
            401 | 429 | 500.. => Outcome::Failed(format!("it answers {}", response.status())),
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

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    /// How long an answer is kept, in seconds.
    async fn kept(status: u16, after: &str) -> u64 {
        let answer = Response::builder()
            .status(status)
            .header(RETRY_AFTER, after)
            .body(());
        let start = Instant::now();
        in_its_time(answer.unwrap()).await.unwrap();
        start.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_to_come_later_comes_no_sooner_and_not_much_later() {
        assert_eq!(kept(429, "7").await, 7);
        assert_eq!(kept(503, "7").await, 7);
        assert_eq!(kept(429, "3600").await, 30);
        for (status, after) in [
            (200, "7"),
            (500, "7"),
            (429, ""),
            (429, "-7"),
            (429, "soon"),
        ] {
            assert_eq!(kept(status, after).await, 0, "{status} {after}");
        }
    }

    #[test]
    fn the_file_of_the_authority_is_that_of_the_current_context() {
        let config = |of_two: &str| {
            let text = format!(
                "{{current-context: b, contexts: [\
                 {{name: a, context: {{cluster: one, user: u}}}}, \
                 {{name: b, context: {{cluster: two, user: u}}}}], clusters: [\
                 {{name: one, cluster: {{server: s, certificate-authority: /one.crt}}}}, \
                 {{name: two, cluster: {{server: s, {of_two}}}}}]}}"
            );
            Kubeconfig::from_yaml(&text).unwrap()
        };
        let file = authority(&config("certificate-authority: /two.crt"));
        assert_eq!(file, Some("/two.crt".into()));
        let data = "certificate-authority: /two.crt, certificate-authority-data: AAAA";
        assert_eq!(authority(&config(data)), None);
        assert_eq!(authority(&config("insecure-skip-tls-verify: true")), None);
    }
}
