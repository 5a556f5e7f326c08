//! Events, which tell whoever looks at an object what is wrong with it.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::time::Instant;

use super::client::cause;
use super::report::MANAGER;
use super::status;
use crate::kubernetes::feed::Name;

/// Between two events about the same thing.
const EVENT_INTERVAL: Duration = Duration::from_secs(300);

/// Events at a time, and how long it takes until there may be one more.
const MAX_EVENTS: u32 = 20;

/// Events, bounded in number, and the same not often.
pub(super) struct Events {
    recorder: Recorder,
    last: HashMap<(String, Name, String), Instant>,
    left: u32,
    refilled: Instant,
}

impl Events {
    /// Of this node's agent, or of whichever writes for all.
    pub(super) fn new(client: kube::Client, node: Option<String>) -> Self {
        let reporter = Reporter {
            controller: MANAGER.to_owned(),
            instance: node,
        };
        Self {
            recorder: Recorder::new(client, reporter),
            last: HashMap::new(),
            left: MAX_EVENTS,
            refilled: Instant::now(),
        }
    }

    /// Returns whether it is told.
    pub(super) async fn warn(
        &mut self,
        kind: &str,
        name: &Name,
        uid: Option<String>,
        reason: &str,
        action: &str,
        note: &str,
    ) -> bool {
        let key = (kind.to_owned(), name.clone(), format!("{reason} {note}"));
        self.last.retain(|_, at| at.elapsed() < EVENT_INTERVAL);
        if self.last.contains_key(&key) {
            return true;
        }
        let earned =
            self.refilled.elapsed().as_secs() / (EVENT_INTERVAL.as_secs() / u64::from(MAX_EVENTS));
        if earned > 0 {
            self.left = (self.left + u32::try_from(earned).unwrap_or(MAX_EVENTS)).min(MAX_EVENTS);
            self.refilled = Instant::now();
        }
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        let regarding = ObjectReference {
            api_version: Some(api_version(kind).to_owned()),
            kind: Some(kind.to_owned()),
            namespace: Some(name.0.clone()),
            name: Some(name.1.clone()),
            uid,
            ..ObjectReference::default()
        };
        let event = Event {
            type_: EventType::Warning,
            reason: reason.to_owned(),
            note: Some(status::shortened(note)),
            action: action.to_owned(),
            secondary: None,
        };
        match self.recorder.publish(&event, &regarding).await {
            Ok(()) => {
                self.last.insert(key, Instant::now());
                true
            }
            Err(error) => {
                tracing::debug!(error = cause(&error), "cannot publish an event");
                false
            }
        }
    }
}

fn api_version(kind: &str) -> &'static str {
    match kind {
        "Secret" | "Service" => "v1",
        "VirtualService" => "networking.istio.io/v1",
        _ => "underpass.dev/v1alpha1",
    }
}
