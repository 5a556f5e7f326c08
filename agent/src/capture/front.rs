//! Where the queries of workloads to name servers arrive.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use aya::maps::{HashMap, MapData};
use parking_lot::Mutex;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use underpass_abi::{FRONTS, Query, QueryKey, SocketRole, map};

use super::bpf::take_entry;
use super::listener::{is_family_missing, prepare};
use super::object::Object;
use super::{CaptureError, MarkedSockets};

/// The longest message over UDP (RFC 6891 section 6.2.3), in bytes.
pub const MAX_MESSAGE: usize = 65_535;

/// The map that the programs fill: which server each query is for.
#[derive(Debug)]
pub(super) struct Queries {
    /// The same map, where the kernel can look an entry up and delete it in one step.
    in_one_step: Option<OwnedFd>,
    map: Mutex<HashMap<MapData, QueryKey, Query>>,
}

impl Queries {
    pub(super) fn new(object: &mut Object) -> Result<Self, CaptureError> {
        let descriptor = object.hash_map(map::QUERIES)?;
        // Nothing comes from port 0: the map has no such entry.
        let nobody = key(0, SocketAddr::from(([0; 16], 0)), [0; 2], 0);
        let is_able = take_entry::<_, Query>(descriptor.as_fd(), &nobody).is_ok();
        Ok(Self {
            in_one_step: is_able.then_some(descriptor),
            map: Mutex::new(object.map(map::QUERIES)?),
        })
    }

    fn take(&self, key: &QueryKey) -> Option<Query> {
        if let Some(map) = &self.in_one_step {
            return take_entry(map.as_fd(), key).ok().flatten();
        }
        // Two steps, on kernels before 5.14: at worst a repeated query is taken twice.
        let mut map = self.map.lock();
        let query = map.get(key, 0).ok()?;
        let _ = map.remove(key);
        Some(query)
    }
}

/// One socket in one network namespace, to which queries for the name servers of one place in the
/// order of each asker come.
#[derive(Debug)]
pub struct Front {
    socket: UdpSocket,
    netns_cookie: u64,
    index: u16,
    queries: Arc<Queries>,
    sockets: Arc<MarkedSockets>,
}

/// A query that the programs sent here.
#[derive(Debug)]
pub struct Asked {
    /// The message, as it came.
    pub message: Vec<u8>,
    /// The workload's side, to which the answer goes.
    pub client: SocketAddr,
    /// The server it was sent to.
    pub server: SocketAddr,
    /// Cgroup v2 id of the process that asks.
    pub cgroup_id: u64,
    /// That process, in the initial pid namespace.
    pub pid: u32,
}

impl Front {
    /// Waits for the next datagram, which is read into `buffer` first. `Ok(None)`: it came by itself,
    /// or its entry is lost; it is not answered.
    ///
    /// # Errors
    /// As `recvfrom(2)`.
    pub async fn receive(&self, buffer: &mut Vec<u8>) -> io::Result<Option<Asked>> {
        // One that nobody asks holds no room.
        self.socket.readable().await?;
        buffer.clear();
        // It is used no further than messages are long.
        buffer.reserve(MAX_MESSAGE);
        let (_, client) = self.socket.recv_buf_from(buffer).await?;
        let Some(number) = buffer.first_chunk() else {
            return Ok(None);
        };
        let key = key(self.netns_cookie, client, *number, self.index);
        Ok(self.queries.take(&key).map(|query| Asked {
            message: buffer.clone(),
            client,
            server: query.server.into(),
            cgroup_id: query.cgroup_id,
            pid: query.pid,
        }))
    }

    /// Sends an answer, which the workload sees come from the server it asked.
    ///
    /// # Errors
    /// As `sendto(2)`.
    pub async fn answer(&self, message: &[u8], client: SocketAddr) -> io::Result<()> {
        self.socket.send_to(message, client).await.map(|_| ())
    }

    /// Has the programs send nothing more here. What they already did still arrives.
    ///
    /// # Errors
    /// The mark cannot be taken off.
    pub fn retire(&self) -> io::Result<()> {
        self.sockets.unmark(&self.socket)
    }
}

fn key(netns_cookie: u64, client: SocketAddr, number: [u8; 2], front: u16) -> QueryKey {
    QueryKey {
        netns_cookie,
        client: client.into(),
        number,
        front,
    }
}

/// Opens the fronts on a loopback address of the calling thread's network namespace, whose cookie
/// that is, and their ports; none where there is no such family. To be called on a tokio runtime.
pub(super) fn open(
    netns_cookie: u64,
    address: IpAddr,
    sockets: &Arc<MarkedSockets>,
    queries: &Arc<Queries>,
) -> Result<(Vec<Front>, [u16; FRONTS]), CaptureError> {
    let mut ports = [0; FRONTS];
    let mut fronts = Vec::with_capacity(FRONTS);
    for (index, port) in (0..).zip(&mut ports) {
        match bind(address, sockets) {
            Ok(socket) => {
                let local = socket.local_addr();
                *port = local
                    .map_err(|source| CaptureError::Listen { address, source })?
                    .port();
                fronts.push(Front {
                    socket,
                    netns_cookie,
                    index,
                    queries: Arc::clone(queries),
                    sockets: Arc::clone(sockets),
                });
            }
            Err(error) if address.is_ipv6() && is_family_missing(&error) => break,
            Err(source) => return Err(CaptureError::Listen { address, source }),
        }
    }
    Ok((fronts, ports))
}

fn bind(address: IpAddr, sockets: &MarkedSockets) -> io::Result<UdpSocket> {
    let local = SocketAddr::new(address, 0);
    let socket = Socket::new(Domain::for_address(local), Type::DGRAM, Some(Protocol::UDP))?;
    prepare(&socket, address)?;
    socket.bind(&local.into())?;
    sockets.mark_as(&socket, SocketRole::Front)?;
    UdpSocket::from_std(socket.into())
}
