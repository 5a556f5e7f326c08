//! Which version of Istio's API the cluster has, if any.

use std::time::{Duration, Instant};

use http::Request;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIGroup;
use tokio::sync::Mutex;

use super::kinds::{ISTIO, ISTIO_VERSIONS};

/// For so long an answer serves all who ask.
const FRESH: Duration = Duration::from_secs(5);

/// Asks for groups of the API, once for all who want to know at about the same time.
pub(super) struct Groups {
    client: kube::Client,
    last: Mutex<Option<(Instant, Option<&'static str>)>>,
}

impl Groups {
    pub(super) fn new(client: kube::Client) -> Self {
        Self {
            client,
            last: Mutex::default(),
        }
    }

    /// The best version that policy knows; `None`: the cluster has none of them.
    pub(super) async fn istio_version(&self) -> Result<Option<&'static str>, kube::Error> {
        let mut last = self.last.lock().await;
        if let Some((at, version)) = *last
            && at.elapsed() < FRESH
        {
            return Ok(version);
        }
        let request = Request::get(format!("/apis/{ISTIO}"))
            .body(Vec::new())
            .map_err(kube::Error::HttpError)?;
        let version = match self.client.request::<APIGroup>(request).await {
            Ok(group) => {
                let served =
                    |version: &&&str| group.versions.iter().any(|it| it.version == **version);
                ISTIO_VERSIONS.iter().find(served).copied()
            }
            Err(kube::Error::Api(status)) if status.code == 404 => None,
            Err(error) => return Err(error),
        };
        *last = Some((Instant::now(), version));
        Ok(version)
    }
}
