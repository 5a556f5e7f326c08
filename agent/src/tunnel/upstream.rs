//! A proxy as long as policy has it: its endpoints, how they do, and the connections that are
//! shared or kept.

mod addresses;
mod balance;
mod check;
mod endpoint;
mod line;
mod multiplexed;
#[cfg(test)]
mod tests;
mod warm;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use http::uri::{PathAndQuery, Scheme};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use self::balance::{Balance, Change, Choice};
use self::line::Line;
use self::multiplexed::Dialer;
use super::connect::{self, Opened};
use super::http2::{Method, NoConnection, Pool, PoolConfig, PoolError, TunnelRequest};
use super::observer::{Observer, Place};
use super::timings::{Took, timed};
use super::{Attempt, Cause, Request, Spoken, Stream};
use crate::dns::Resolver;
use crate::policy::{DialFrom, Proxy, TunnelProtocol};
use crate::sockets::SocketFactory;

pub(super) use endpoint::{Active, Connection, Endpoint};
pub use multiplexed::NotMade;

/// A proxy and all that is known of it.
pub(super) struct Upstream {
    /// As it was when it came into policy. Later ones that differ in what goes into each request
    /// alone are the same upstream.
    proxy: Arc<Proxy>,
    /// As policy has it now, once it has been told.
    renewed: Mutex<Option<Arc<Proxy>>>,
    line: Arc<Line>,
    endpoints: Arc<[Arc<Endpoint>]>,
    balance: Mutex<Balance>,
    observer: Arc<dyn Observer>,
    /// For tunnels that are being opened.
    openings: Option<Arc<Semaphore>>,
    /// Of a proxy that speaks HTTP/2. Its keys are the numbers of the endpoints.
    pool: Option<Pool<Dialer>>,
}

/// What one request has tried.
#[derive(Debug, Default)]
pub(super) struct Tried {
    /// Endpoints of which nothing more is to be expected.
    exhausted: Vec<usize>,
    addresses: Vec<SocketAddr>,
}

impl Tried {
    fn exhaust(&mut self, index: usize) {
        self.exhausted.push(index);
        self.addresses.clear();
    }
}

/// One try at an endpoint, whose outcome is told.
#[derive(Debug)]
pub(super) struct Turn {
    upstream: Arc<Upstream>,
    choice: Choice,
    is_told: bool,
}

impl Upstream {
    pub(super) fn new(
        proxy: &Arc<Proxy>,
        sockets: &Arc<dyn SocketFactory>,
        resolver: &Resolver,
        observer: &Arc<dyn Observer>,
    ) -> Self {
        let settings = proxy.settings;
        let label = proxy.label();
        // One that waits for use may be the one too many.
        let warm = settings.warm && settings.max_connections.is_none();
        let endpoints = proxy
            .endpoints
            .iter()
            .map(|endpoint| Arc::new(Endpoint::new(label, endpoint, warm, observer)));
        let endpoints: Arc<[_]> = endpoints.collect();
        let line = Line::new(Arc::clone(sockets), resolver.clone(), proxy);
        let line = Arc::new(line);
        let weights = endpoints.iter().map(|endpoint| endpoint.weight);
        let balance = Balance::new(settings.balance, settings.ejection, weights);
        let pool = (proxy.protocol != TunnelProtocol::Http1Connect).then(|| {
            let dialer = Dialer {
                line: Arc::clone(&line),
                endpoints: Arc::clone(&endpoints),
                falls_back: proxy.protocol == TunnelProtocol::Http2Connect,
            };
            let mut config = PoolConfig::default();
            if let Some(max) = settings.max_connections {
                config.max_connections = config.max_connections.min(max as usize);
            }
            Pool::new(dialer, config)
        });
        Self {
            openings: settings
                .max_pending
                .map(|max| Arc::new(Semaphore::new(max as usize))),
            proxy: Arc::clone(proxy),
            renewed: Mutex::default(),
            line,
            endpoints,
            balance: Mutex::new(balance),
            observer: Arc::clone(observer),
            pool,
        }
    }

    /// As it was when it came into policy.
    pub(super) fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    /// Whether connections for `proxy` are the same as those of this.
    pub(super) fn serves(&self, proxy: &Proxy) -> bool {
        let own = &*self.proxy;
        if std::ptr::eq(own, proxy) {
            return true;
        }
        let key = |proxy: &Proxy| (proxy.port, proxy.protocol, proxy.settings);
        let same_tls = || match (&own.tls, &proxy.tls) {
            (None, None) => true,
            (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a.settings() == b.settings(),
            _ => false,
        };
        key(own) == key(proxy)
            && own.host == proxy.host
            && own.endpoints == proxy.endpoints
            && same_tls()
    }

    /// Policy has `proxy` now, which is [served](Self::serves).
    pub(super) fn renew(self: &Arc<Self>, proxy: &Arc<Proxy>) {
        let before = self.renewed.lock().replace(Arc::clone(proxy));
        if before.is_none_or(|before| !Arc::ptr_eq(&before, proxy)) {
            check::start(self, proxy);
        }
    }

    /// Leave to open a tunnel, as long as it is held.
    pub(super) fn begin(&self) -> Result<Option<OwnedSemaphorePermit>, Cause> {
        let Some(openings) = &self.openings else {
            return Ok(None);
        };
        let permit = Arc::clone(openings).try_acquire_owned();
        permit.map(Some).map_err(|_| Cause::TooManyPending)
    }

    /// Of one that is connected to from many namespaces, each knows something else.
    fn tell_health(&self, place: &Place, healthy: bool) {
        if self.proxy.settings.dial_from == DialFrom::Node {
            self.observer.healthy(place, healthy);
        }
    }

    /// A turn of an endpoint that was not chosen for any request.
    fn visit(self: &Arc<Self>, index: usize) -> Turn {
        Turn {
            upstream: Arc::clone(self),
            choice: self.balance.lock().visit(index, Instant::now()),
            is_told: false,
        }
    }

    /// Whether some endpoint is not passed over.
    pub(super) fn is_available(&self) -> bool {
        self.balance.lock().is_available(Instant::now())
    }

    /// The endpoint to try next.
    pub(super) fn next(self: &Arc<Self>, tried: &Tried) -> Option<Turn> {
        let open = |index: usize| !tried.exhausted.contains(&index);
        let active = |index: usize| self.endpoints[index].tunnels();
        let choice = self.balance.lock().choose(Instant::now(), open, active)?;
        Some(Turn {
            upstream: Arc::clone(self),
            choice,
            is_told: false,
        })
    }

    /// Whether there is another endpoint to try when the next one fails.
    pub(super) fn has_others(&self, tried: &Tried) -> bool {
        self.endpoints.len() - tried.exhausted.len() > 1
    }

    /// Opens a tunnel by HTTP/1.1 CONNECT, `None` if the proxy chose HTTP/2. A scheme that proves a
    /// connection instead of a request, such as Negotiate, would be several exchanges in here, on
    /// the same stream.
    async fn over_http1(
        &self,
        endpoint: &Arc<Endpoint>,
        request: &Request<'_>,
        use_warm: bool,
        deadline: Instant,
        attempt: &mut Attempt,
    ) -> Result<Option<(Stream, Opened)>, Cause> {
        attempt.spoken = Spoken::Http1Connect;
        let credentials = request.proxy.credentials.as_ref();
        let bytes = connect::request(request.target, request.headers, credentials);
        let mut warm = None;
        if use_warm {
            warm = endpoint.warm.take().await;
            endpoint.warm.demand(endpoint, &self.line);
        }
        if let Some(mut stream) = warm {
            attempt.address = stream.address();
            let exchange = connect::exchange(&mut stream, &bytes, deadline);
            match timed(&mut attempt.timings.connect, exchange).await {
                Ok(opened) => return Ok(Some((stream, opened))),
                // The proxy has closed it just now, and seen nothing of the workload.
                Err(error) if error.is_unanswered() => attempt.timings.connect = None,
                Err(error) => return Err(error.into()),
            }
        }
        let mut stream = self.line.connect(endpoint, deadline, attempt).await?;
        if stream.alpn() == Some(b"h2") {
            return Ok(None);
        }
        let exchange = connect::exchange(&mut stream, &bytes, deadline);
        let opened = timed(&mut attempt.timings.connect, exchange).await?;
        Ok(Some((stream, opened)))
    }

    /// Opens a tunnel as a stream of HTTP/2.
    async fn over_http2(
        &self,
        pool: &Pool<Dialer>,
        index: usize,
        request: &Request<'_>,
        deadline: Instant,
        attempt: &mut Attempt,
    ) -> Result<(Stream, Opened), PoolError<NotMade>> {
        attempt.spoken = match self.proxy.protocol {
            TunnelProtocol::Http2Post => Spoken::Http2Post,
            _ => Spoken::Http2Connect,
        };
        let method = match (self.proxy.protocol, self.line.tls()) {
            (TunnelProtocol::Http2Post, tls) => Method::Post {
                scheme: if tls.is_some() {
                    Scheme::HTTPS
                } else {
                    Scheme::HTTP
                },
                path: PathAndQuery::from_static("/"),
            },
            _ => Method::Connect,
        };
        let request = TunnelRequest {
            target: request.target,
            method: &method,
            headers: request.headers,
            authorization: request.proxy.credentials.as_ref(),
        };
        let opened = pool.open(&index, &request, deadline).await?;
        attempt.address = opened.info.addr;
        if !opened.reused {
            attempt.timings = opened.info.timings;
        }
        attempt.timings.connect = Some(Took::until_now(opened.took));
        let code = opened.code;
        let early = bytes::Bytes::new();
        Ok((opened.stream.into(), Opened { code, early }))
    }
}

impl Turn {
    /// The endpoint whose turn it is.
    pub(super) fn endpoint(&self) -> &Arc<Endpoint> {
        &self.upstream.endpoints[self.choice.index]
    }

    /// Opens a tunnel at the endpoint.
    pub(super) async fn open(
        &self,
        request: &Request<'_>,
        deadline: Instant,
        attempt: &mut Attempt,
    ) -> Result<(Stream, Opened), Cause> {
        let active = Active::new(self.endpoint());
        let opening = self.by_protocol(request, true, deadline, attempt);
        let (mut stream, opened) = opening.await?;
        stream.hold(active);
        Ok((stream, opened))
    }

    /// Has the endpoint show that it can open a tunnel, on a connection that may be shared, but not
    /// on one that waits for a workload.
    async fn ask(
        &self,
        request: &Request<'_>,
        deadline: Instant,
        attempt: &mut Attempt,
    ) -> Result<(), Cause> {
        let asking = self.by_protocol(request, false, deadline, attempt);
        Box::pin(asking).await.map(drop)
    }

    async fn by_protocol(
        &self,
        request: &Request<'_>,
        use_warm: bool,
        deadline: Instant,
        attempt: &mut Attempt,
    ) -> Result<(Stream, Opened), Cause> {
        let (upstream, endpoint) = (&self.upstream, self.endpoint());
        attempt.endpoint = Some(Arc::clone(&endpoint.place.endpoint));
        match &upstream.pool {
            None => {
                let opening = upstream.over_http1(endpoint, request, use_warm, deadline, attempt);
                opening.await?.ok_or(Cause::UnwantedHttp2)
            }
            Some(pool) => {
                self.by_either(pool, request, use_warm, deadline, attempt)
                    .await
            }
        }
    }

    /// Connects to the endpoint, and leaves it at that. A connection that was made ahead is of no
    /// use: what has been sent on one that the proxy closes just then cannot be sent again.
    pub(super) async fn connect(
        &self,
        deadline: Instant,
        attempt: &mut Attempt,
    ) -> Result<Stream, Cause> {
        let endpoint = self.endpoint();
        attempt.endpoint = Some(Arc::clone(&endpoint.place.endpoint));
        attempt.spoken = Spoken::Http1Absolute;
        let active = Active::new(endpoint);
        let line = &self.upstream.line;
        let mut stream = line.connect(endpoint, deadline, attempt).await?;
        if stream.alpn() == Some(b"h2") {
            return Err(Cause::UnwantedHttp2);
        }
        stream.hold(active);
        Ok(stream)
    }

    /// Opens a tunnel by HTTP/2, unless the endpoint chooses HTTP/1.1.
    async fn by_either(
        &self,
        pool: &Pool<Dialer>,
        request: &Request<'_>,
        use_warm: bool,
        deadline: Instant,
        attempt: &mut Attempt,
    ) -> Result<(Stream, Opened), Cause> {
        let (upstream, endpoint) = (&self.upstream, self.endpoint());
        if endpoint.speaks_http1() {
            let opening = upstream.over_http1(endpoint, request, use_warm, deadline, attempt);
            if let Some(opened) = opening.await? {
                return Ok(opened);
            }
            endpoint.chose_http1(false);
        }
        let index = self.choice.index;
        let opening = upstream.over_http2(pool, index, request, deadline, attempt);
        let error = match opening.await {
            Ok(opened) => return Ok(opened),
            Err(error) => error,
        };
        let mut chose_http1 = false;
        if let PoolError::Connect(NoConnection::Dial(not_made)) = &error {
            attempt.address = not_made.attempt.address;
            attempt.timings = not_made.attempt.timings;
            chose_http1 = not_made.chose_http1();
        }
        let error = Cause::Http2(Box::new(error));
        if !chose_http1 || upstream.proxy.protocol != TunnelProtocol::Http2Connect {
            return Err(error);
        }
        let opening = upstream.over_http1(endpoint, request, use_warm, deadline, attempt);
        opening.await?.ok_or(error)
    }

    /// The endpoint did what it is for, whether it said yes or no.
    pub(super) fn worked(mut self, address: Option<SocketAddr>) {
        self.is_told = true;
        if let Some(address) = address {
            self.endpoint().addresses.worked(address);
        }
        let mut balance = self.upstream.balance.lock();
        if balance.worked(self.choice.index, Instant::now()) == Some(Change::Back) {
            let place = &self.endpoint().place;
            tracing::info!(proxy = %place.proxy, endpoint = %place.endpoint, "endpoint is well again");
            self.upstream.tell_health(place, true);
        }
    }

    /// The endpoint failed.
    pub(super) fn failed(
        mut self,
        cause: &dyn fmt::Display,
        address: Option<SocketAddr>,
        tried: &mut Tried,
    ) {
        self.is_told = true;
        let addresses = &self.endpoint().addresses;
        if let Some(address) = address {
            addresses.failed(address);
            tried.addresses.push(address);
        }
        if address.is_none() || addresses.count() <= tried.addresses.len() {
            tried.exhaust(self.choice.index);
        }
        let mut balance = self.upstream.balance.lock();
        if let Some(Change::PassedOver(time)) = balance.failed(self.choice, Instant::now()) {
            let place = &self.endpoint().place;
            tracing::warn!(
                proxy = %place.proxy,
                endpoint = %place.endpoint,
                error = %cause,
                seconds = time.as_secs_f32(),
                "endpoint keeps failing: it is used only where no other is well"
            );
            self.upstream.tell_health(place, false);
        }
    }

    /// The endpoint could not serve the target, but another one may.
    pub(super) fn refused(self, tried: &mut Tried) {
        tried.exhaust(self.choice.index);
        self.worked(None);
    }

    /// Nothing is learnt of the endpoint, and it is not tried again.
    pub(super) fn set_aside(self, tried: &mut Tried) {
        tried.exhaust(self.choice.index);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.choice.trial && !self.is_told {
            self.upstream.balance.lock().give_up(self.choice.index);
        }
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream")
            .field("proxy", &self.proxy)
            .finish_non_exhaustive()
    }
}
