//! Names to addresses, by whatever the gateway is given for it.

use std::error::Error;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;

use crate::dns::Resolver;
use crate::name::HostName;

/// Finds the addresses of a name.
pub trait Resolve: Send + Sync {
    /// The addresses of `name`, best first. An error says why in words for the client.
    fn resolve<'a>(&'a self, name: &'a HostName) -> Resolving<'a>;
}

impl Resolve for Resolver {
    fn resolve<'a>(&'a self, name: &'a HostName) -> Resolving<'a> {
        Resolving::new(async move { self.lookup(name).await.map(|found| found.addrs) })
    }
}

/// The future of [`Resolve::resolve`].
pub struct Resolving<'a>(
    pub(super) Pin<Box<dyn Future<Output = Result<Vec<IpAddr>, ResolveError>> + Send + 'a>>,
);

impl<'a> Resolving<'a> {
    /// Wraps a future that finds the addresses.
    pub fn new<E: Error + Send + Sync + 'static>(
        future: impl Future<Output = Result<Vec<IpAddr>, E>> + Send + 'a,
    ) -> Self {
        Self(Box::pin(async {
            future.await.map_err(|error| ResolveError(Box::new(error)))
        }))
    }
}

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(super) struct ResolveError(Box<dyn Error + Send + Sync>);
