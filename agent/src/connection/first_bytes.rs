//! The first bytes of a connection: what they tell of the target.

use std::io;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Failure, Origin, Way};
use crate::inspect::{InspectError, Inspected, Seen, Source, inspect, inspect_for_tls};
use crate::name::Host;
use crate::policy::{Claim, Look, NameSource};
use crate::relay::Shared;
use crate::relay::http::own_answer;
use crate::sockets::finish_on_close;
use crate::telemetry::{ConnectionRecord, Inspection, RequestRecord, ResponseFlag};

/// How long a refused HTTP client may take to read why.
pub(super) const REJECTION_DEADLINE: Duration = Duration::from_secs(1);

impl Way {
    /// Reads the first bytes. A malformed HTTP request is answered as an HTTP server would.
    pub(super) async fn inspect(
        &self,
        workload: &mut TcpStream,
        look: Look,
        origin: &Origin,
        record: &mut ConnectionRecord,
    ) -> Result<Inspected, Failure> {
        let start = Instant::now();
        let inspected = match look {
            Look::ForTls => inspect_for_tls(workload, &self.inspection).await,
            Look::Whole => inspect(workload, &self.inspection).await,
        };
        match inspected {
            Ok(inspected) => {
                record.inspected(start, inspection(&inspected.seen));
                Ok(inspected)
            }
            Err(error) => {
                let what = match error {
                    InspectError::HeadTimeout(_) => Inspection::Timeout,
                    InspectError::Read(_) => Inspection::Closed,
                    _ => Inspection::Malformed,
                };
                record.inspected(start, what);
                let flag = match error.status() {
                    Some(status) => {
                        let flag = ResponseFlag::DownstreamProtocol;
                        record.by_request();
                        let captured = origin.seen_from(record);
                        let mut request = RequestRecord::begin(&self.metrics, captured);
                        request.traced(record.trail().request([]));
                        request.failed(flag, &error);
                        let answer =
                            own_answer(status, &error.to_string(), request.id(), false, true);
                        request.progress().answered(status.as_u16(), answer.len());
                        drop(request);
                        last_words(workload, &answer).await;
                        flag
                    }
                    None => ResponseFlag::DownstreamClosed,
                };
                Err(Failure::new(flag, error))
            }
        }
    }
}

/// The host that first bytes ask for.
pub(super) fn claim((host, source): (Host, Source)) -> Claim {
    Claim {
        host,
        source: match source {
            Source::HttpHost => NameSource::HttpHost,
            Source::Sni => NameSource::Sni,
        },
    }
}

/// Says something last, and lets the client read it: a reset right after it could overtake it.
pub(super) async fn last_words(workload: &TcpStream, words: &[u8]) {
    let mut socket = Shared(workload);
    let saying = async {
        socket.write_all(words).await?;
        socket.shutdown().await?;
        finish_on_close(workload);
        // Not within the future, where each connection would have the room for all its life.
        let mut rest = vec![0u8; 4096];
        while socket.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    // A client that does not listen has had its answer.
    let _ = timeout(REJECTION_DEADLINE, saying).await;
}

fn inspection(seen: &Seen) -> Inspection {
    match seen {
        Seen::Tls(hello) => match (&hello.server_name, hello.ech) {
            (Some(_), true) => Inspection::TlsEch,
            (Some(_), false) => Inspection::Tls,
            (None, _) => Inspection::TlsNoName,
        },
        Seen::Http(head) => match head.host.as_ref().and_then(Host::name) {
            Some(_) => Inspection::Http,
            None => Inspection::HttpNoName,
        },
        Seen::Http2 => Inspection::Http2,
        Seen::Opaque => Inspection::Opaque,
        Seen::Silent => Inspection::Silent,
        Seen::Closed => Inspection::Closed,
    }
}
