//! Which of the agents writes what all of them have to say.
//!
//! It is the one that holds a Lease. Whether a holder lives is told by its renewals as they are seen
//! here, not by its clock.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::PostParams;
use tokio::time::Instant;

/// The Lease of the writer. That of no node can have its name: those begin with `underpass-`.
const NAME: &str = "underpass.status";

/// After so long without a renewal another may take over.
const DURATION: Duration = Duration::from_secs(30);

/// Between two renewals, and between two looks of the others.
pub(super) const RENEWAL: Duration = Duration::from_secs(10);

/// Takes part in who leads.
pub(super) struct Candidate {
    leases: Api<Lease>,
    me: String,
    /// The version of the Lease that was last seen, and since when.
    seen: Option<(String, Instant)>,
}

impl Candidate {
    pub(super) fn new(leases: Api<Lease>, me: String) -> Self {
        Self {
            leases,
            me,
            seen: None,
        }
    }

    /// Takes the lead, or keeps it, if nobody else has it. Returns whether it is ours until the next
    /// renewal is due.
    pub(super) async fn lead(&mut self) -> Result<bool, kube::Error> {
        let post = PostParams::default();
        let result = match self.leases.get_opt(NAME).await? {
            None => {
                let lease = Lease {
                    metadata: ObjectMeta {
                        name: Some(NAME.to_owned()),
                        ..ObjectMeta::default()
                    },
                    spec: Some(self.spec(0)),
                };
                self.leases.create(&post, &lease).await
            }
            Some(mut lease) => {
                let spec = lease.spec.take().unwrap_or_default();
                let is_mine = spec.holder_identity.as_deref() == Some(&self.me);
                let is_free = spec.holder_identity.as_deref().is_none_or(str::is_empty);
                let version = lease.metadata.resource_version.clone().unwrap_or_default();
                if !is_mine && !is_free && !self.is_stale(version) {
                    return Ok(false);
                }
                let turns = spec.lease_transitions.unwrap_or_default();
                lease.spec = Some(self.spec(turns + i32::from(!is_mine)));
                // The version in it is that which was read, so only one of several takes over.
                self.leases.replace(NAME, &post, &lease).await
            }
        };
        match result {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn is_stale(&mut self, version: String) -> bool {
        match &self.seen {
            Some((seen, since)) if *seen == version => since.elapsed() > DURATION,
            _ => {
                self.seen = Some((version, Instant::now()));
                false
            }
        }
    }

    fn spec(&self, turns: i32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            lease_transitions: Some(turns),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        }
    }
}
