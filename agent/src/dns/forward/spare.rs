//! Sockets that wait for their next query.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use socket2::SockRef;
use tokio::net::UdpSocket;

use crate::sockets::Vantage;

/// The most of one network namespace and family, and in all.
const MAX_OF_PLACE: usize = 4;
const MAX: usize = 512;

/// Late datagrams that are passed over before a socket is given up.
const MAX_LATE: usize = 64;

/// From where a socket asks.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct Place {
    /// The [id](Vantage::id) of the network namespace; `None`: the agent's own.
    vantage: Option<u64>,
    ipv6: bool,
}

impl Place {
    /// From where a server is asked.
    pub(super) fn new(there: Option<&Arc<Vantage>>, server: SocketAddr) -> Self {
        Self {
            vantage: there.map(|there| there.id()),
            ipv6: server.is_ipv6(),
        }
    }
}

/// The sockets, none of which is bound.
#[derive(Debug, Default)]
pub(super) struct Spare(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    sockets: HashMap<Place, Vec<UdpSocket>>,
    count: usize,
}

impl Spare {
    /// One of this place.
    pub(super) fn take(&self, place: &Place) -> Option<UdpSocket> {
        let mut kept = self.0.lock();
        let sockets = kept.sockets.get_mut(place)?;
        let socket = sockets.pop()?;
        if sockets.is_empty() {
            kept.sockets.remove(place);
        }
        kept.count -= 1;
        Some(socket)
    }

    /// Keeps a socket of a namespace, if there is room and somebody lives there.
    pub(super) fn give_back(&self, place: Place, there: Option<&Arc<Vantage>>, socket: UdpSocket) {
        if forget_server(&socket).is_err() {
            return;
        }
        let mut kept = self.0.lock();
        // Under the lock: a socket must not outlive its namespace, which it would keep.
        let is_left = there.is_some_and(|there| !there.is_lived_in());
        let of_place = kept.sockets.get(&place).map_or(0, Vec::len);
        if !is_left && of_place < MAX_OF_PLACE && kept.count < MAX {
            kept.sockets.entry(place).or_default().push(socket);
            kept.count += 1;
        }
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        let kept = self.0.lock();
        assert_eq!(
            kept.count,
            kept.sockets.values().map(Vec::len).sum::<usize>()
        );
        kept.count
    }

    /// Closes those of a namespace.
    pub(super) fn leave(&self, vantage: &Vantage) {
        let mut kept = self.0.lock();
        vantage.leave();
        kept.sockets
            .retain(|place, _| place.vantage != Some(vantage.id()));
        kept.count = kept.sockets.values().map(Vec::len).sum();
    }
}

/// Has a socket be nobody's: it has no port any more, to which something could come, and what has come
/// is gone.
fn forget_server(socket: &UdpSocket) -> io::Result<()> {
    rustix::net::connect_unspec(socket)?;
    let mut nothing = [MaybeUninit::uninit(); 1];
    for _ in 0..MAX_LATE {
        if let Err(error) = SockRef::from(socket).recv(&mut nothing)
            && error.kind() == io::ErrorKind::WouldBlock
        {
            return Ok(());
        }
    }
    Err(io::ErrorKind::QuotaExceeded.into())
}
