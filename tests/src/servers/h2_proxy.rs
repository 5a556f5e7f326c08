//! A forward proxy of HTTP/2 that misbehaves when told to, and is the target of its tunnels.

pub mod frame;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::process::Running;
use crate::{Must as _, World, poll};

/// How far above the port of the tunnels it takes orders.
const ORDERS: u16 = 1000;

/// The target reads, and never opens the window of the stream again.
pub const STALLS: u16 = 5;
/// The target sends back what comes.
pub const ECHO: u16 = 7;
/// The target sends [`SIZE`] bytes and ends.
pub const SOURCE: u16 = 9;
/// What it sends.
pub const SIZE: usize = 16 << 20;
/// The target sends without an end.
pub const FLOOD: u16 = 19;

/// `programs/h2_proxy.py`. The ports that tunnels lead to say what it makes of them.
pub struct H2Proxy {
    running: Running,
    orders: Mutex<BufReader<TcpStream>>,
}

/// What it knows of one connection.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Streams that are open.
    pub open: u64,
    /// The most that were open at a time.
    pub peak: u64,
    /// Requests that have come.
    pub requests: u64,
    /// Why it has ended, if it has.
    pub ended: Option<String>,
    /// Bytes that came on each stream.
    pub received: Vec<u64>,
    /// Bytes that were sent on each stream.
    pub sent: Vec<u64>,
    /// What came, as python3-h2 names it, and how often.
    pub events: BTreeMap<String, u64>,
}

impl H2Proxy {
    /// Starts it at `address`, with these SETTINGS, and waits until it takes orders.
    #[track_caller]
    pub fn start(world: &World, address: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let orders = SocketAddr::new(address.ip(), address.port() + ORDERS);
        let program = world.inet().debian_python("h2_proxy");
        let program = program.arg(address.ip().to_string());
        let program = program.args([address.port(), orders.port()].map(|port| port.to_string()));
        let mut running = program.start();
        let mut taken = None;
        running.wait_for("the proxy takes orders", Duration::from_secs(20), || {
            taken = world.inet().connect(orders).ok();
            taken.is_some()
        });
        let stream = taken.expect("a connection for orders");
        let time = Some(Duration::from_secs(60));
        stream.set_read_timeout(time).must("bound an order");
        let proxy = Self {
            running,
            orders: Mutex::new(BufReader::new(stream)),
        };
        let settings: BTreeMap<_, _> = settings.iter().copied().collect();
        proxy.order(&json!({ "settings": settings }));
        proxy
    }

    /// The process, to be held still.
    pub fn process(&self) -> &Running {
        &self.running
    }

    /// Has it do something; see the program.
    #[track_caller]
    pub fn order(&self, order: &Value) -> Value {
        let mut orders = self.orders.lock();
        let mut answer = String::new();
        let asked = writeln!(orders.get_mut(), "{order}");
        asked.must("give an order");
        let heard = orders.read_line(&mut answer);
        heard.must(format_args!("be answered: {order}"));
        serde_json::from_str(&answer)
            .unwrap_or_else(|_| panic!("{order}: {answer:?}\n{}", self.running.tails()))
    }

    /// How requests to come are answered.
    #[track_caller]
    pub fn answer(&self, how: &Value) {
        self.order(&json!({ "answer": how }));
    }

    /// Requests to come are met with these frames instead of an answer.
    #[track_caller]
    pub fn answer_with(&self, frames: &[u8]) {
        self.answer(&json!({ "frames": hex(frames) }));
    }

    /// Sends these frames on a connection.
    #[track_caller]
    pub fn send(&self, connection: usize, frames: &[u8]) {
        assert!(self.flood(connection, &[], 0, frames), "it has ended");
    }

    /// Sends the same bytes `times`, and `end` once; whether the connection is still there after
    /// that.
    #[track_caller]
    pub fn flood(&self, connection: usize, bytes: &[u8], times: u64, end: &[u8]) -> bool {
        let order =
            json!({ "send": hex(bytes), "to": connection, "times": times, "end": hex(end) });
        self.order(&order) == true
    }

    /// Sends these frames at the beginning of each connection to come.
    #[track_caller]
    pub fn greet(&self, frames: &[u8]) {
        self.order(&json!({ "greet": hex(frames) }));
    }

    /// What it knows of its connections, the first one first.
    #[track_caller]
    pub fn connections(&self) -> Vec<Connection> {
        let state = self.order(&json!({ "state": true }));
        let all = state.as_array().expect("a list of connections");
        all.iter().map(Connection::read).collect()
    }

    /// Waits until `condition` holds for its connections.
    #[track_caller]
    pub fn wait_for(
        &self,
        what: &str,
        condition: impl Fn(&[Connection]) -> bool,
    ) -> Vec<Connection> {
        let reached = || Some(self.connections()).filter(|all| condition(all));
        poll(Duration::from_secs(20), reached).unwrap_or_else(|| {
            let tails = self.running.tails();
            panic!("in vain for: {what}: {:#?}\n{tails}", self.connections())
        })
    }
}

impl Connection {
    fn read(state: &Value) -> Self {
        let number = |name: &str| state[name].as_u64().unwrap_or_default();
        let numbers = |name: &str| {
            let list = state[name].as_array().into_iter().flatten();
            list.filter_map(Value::as_u64).collect()
        };
        let events = state["events"].as_object().into_iter().flatten();
        Self {
            open: number("open"),
            peak: number("peak"),
            requests: number("requests"),
            ended: state["ended"].as_str().map(str::to_owned),
            received: numbers("received"),
            sent: numbers("sent"),
            events: events
                .filter_map(|(name, count)| Some((name.clone(), count.as_u64()?)))
                .collect(),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
