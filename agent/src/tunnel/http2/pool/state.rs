//! What a pool has for one key: connections, the places on them, and who waits for one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::{Connection, Status};
use super::{Dial, Inner, NoConnection, PoolConfig, Stats};

/// Connections that are made at a time, once it is known how many streams one takes.
const MAX_DIALS: usize = 4;

/// Connections that take no streams until no other is made: the first may have been told so because
/// it is to end.
const MAX_BARREN: usize = 2;

pub(super) type Groups<D> = HashMap<<D as Dial>::Key, Group<D>>;

/// The connections for one key.
pub(super) struct Group<D: Dial> {
    /// In the order in which they are filled.
    members: Vec<Member<D>>,
    /// By ticket, so in the order in which they came.
    waiters: BTreeMap<u64, Waiter<D>>,
    dialing: usize,
    /// How many streams the connection made last takes; unknown before the first.
    expected: Option<usize>,
}

struct Member<D: Dial> {
    id: u64,
    connection: Connection,
    info: D::Info,
    /// Places that are taken.
    taken: usize,
    /// Places that there are.
    limit: usize,
    /// No new streams.
    retired: bool,
    /// Whether a place has been taken before.
    used: bool,
    /// Since when no place has been taken.
    idle_since: Instant,
}

/// Somebody who waits for a place.
pub(super) struct Waiter<D: Dial> {
    pub(super) place: oneshot::Sender<Result<Lease<D>, NoConnection<D::Error>>>,
    /// The connections that have not taken the request.
    pub(super) avoid: Vec<u64>,
}

impl<D: Dial> Default for Group<D> {
    fn default() -> Self {
        Self {
            members: Vec::new(),
            waiters: BTreeMap::new(),
            dialing: 0,
            expected: None,
        }
    }
}

impl<D: Dial> Group<D> {
    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty() && self.waiters.is_empty() && self.dialing == 0
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiters.len()
    }

    pub(super) fn stats(&self) -> Stats {
        let going_away = self.members.iter().filter(|member| member.retired).count();
        Stats {
            connections: self.members.len(),
            going_away,
            dialing: self.dialing,
            streams: self.members.iter().map(|member| member.taken).sum(),
            waiting: self.waiters.len(),
        }
    }

    /// Puts `waiter` at the end of the queue: each ticket is higher than those before.
    pub(super) fn enqueue(&mut self, ticket: u64, waiter: Waiter<D>) {
        self.waiters.insert(ticket, waiter);
    }

    pub(super) fn leave(&mut self, ticket: u64) {
        self.waiters.remove(&ticket);
    }

    /// Adds a connection that has been dialled.
    pub(super) fn add(&mut self, id: u64, connection: Connection, info: D::Info) {
        self.dialing -= 1;
        let status = connection.status().borrow().clone();
        self.members.push(Member {
            id,
            connection,
            info,
            taken: 0,
            limit: 0,
            retired: false,
            used: false,
            idle_since: Instant::now(),
        });
        self.update(id, &status);
    }

    /// A dial has failed: whoever waits is told, rather than left to find out one by one.
    pub(super) fn dial_failed(&mut self, error: &NoConnection<D::Error>) {
        self.dialing -= 1;
        for waiter in std::mem::take(&mut self.waiters).into_values() {
            // Who has just given up needs no answer.
            let _ = waiter.place.send(Err(error.clone()));
        }
    }

    pub(super) fn update(&mut self, id: u64, status: &Status) {
        let Some(member) = self.member(id) else {
            return;
        };
        member.limit = status.max_streams.unwrap_or(0);
        member.retired |= status.going_away || status.ended.is_some();
        let limit = member.limit;
        if self.members.last().is_some_and(|last| last.id == id) {
            self.expected = Some(limit);
        }
    }

    /// The connection gets no new streams.
    pub(super) fn retire(&mut self, id: u64) {
        if let Some(member) = self.member(id) {
            member.retired = true;
        }
    }

    pub(super) fn remove(&mut self, id: u64) {
        self.members.retain(|member| member.id != id);
    }

    pub(super) fn is_idle(&mut self, id: u64, timeout: Duration, now: Instant) -> bool {
        self.member(id)
            .is_some_and(|member| member.taken == 0 && now >= member.idle_since + timeout)
    }

    fn give_back(&mut self, id: u64) {
        if let Some(member) = self.member(id) {
            member.taken -= 1;
            member.idle_since = Instant::now();
        }
    }

    /// Gives the places there are to those who wait, the first come first.
    pub(super) fn serve(&mut self, pool: &Arc<Inner<D>>, key: &D::Key) {
        let mut from = 0;
        while let Some((&ticket, waiter)) = self.waiters.range(from..).next() {
            let Some(at) = self.room(&waiter.avoid, pool.config.max_connections) else {
                if waiter.avoid.is_empty() {
                    return;
                }
                // The next one may be content with what this one avoids.
                from = ticket + 1;
                continue;
            };
            let Some(waiter) = self.waiters.remove(&ticket) else {
                return;
            };
            let member = &mut self.members[at];
            member.taken += 1;
            let lease = Lease {
                id: member.id,
                connection: member.connection.clone(),
                info: member.info.clone(),
                reused: std::mem::replace(&mut member.used, true),
                key: key.clone(),
                pool: Some(Arc::clone(pool)),
            };
            if let Err(Ok(mut lease)) = waiter.place.send(Ok(lease)) {
                // Given up meanwhile. Its drop would wait for the lock that is held here.
                lease.pool = None;
                member.taken -= 1;
            }
        }
    }

    /// The first connection with a free place: the first ones are kept full, so that the last
    /// ones can become idle. One to avoid is taken only if there can be no other.
    fn room(&self, avoid: &[u64], max_connections: usize) -> Option<usize> {
        let free = |member: &Member<D>| !member.retired && member.taken < member.limit;
        let other = |member: &Member<D>| free(member) && !avoid.contains(&member.id);
        self.members.iter().position(other).or_else(|| {
            let is_full = self.accepting() + self.dialing >= max_connections;
            let any = self.members.iter().position(free);
            any.filter(|_| is_full && self.dialing == 0)
        })
    }

    /// How many dials to begin; they count as begun.
    ///
    /// Those who wait share the connections under way. How many streams one takes is known only
    /// after the first, so that is awaited before there is a second. A proxy whose connections
    /// take none for now (RFC 9113 section 6.5.2) is waited for, not given more of them.
    pub(super) fn start_dials(&mut self, config: &PoolConfig) -> usize {
        let needed = match self.expected {
            Some(0) => self
                .waiters
                .len()
                .min(MAX_BARREN - self.barren().min(MAX_BARREN)),
            Some(expected) => self.waiters.len().div_ceil(expected).min(MAX_DIALS),
            None => self.waiters.len().min(1),
        };
        let room = config
            .max_connections
            .saturating_sub(self.accepting() + self.dialing);
        let dials = needed.saturating_sub(self.dialing).min(room);
        self.dialing += dials;
        dials
    }

    /// Connections that take no stream for now.
    fn barren(&self) -> usize {
        let barren = |member: &&Member<D>| !member.retired && member.limit == 0;
        self.members.iter().filter(barren).count()
    }

    fn accepting(&self) -> usize {
        self.members.iter().filter(|member| !member.retired).count()
    }

    fn member(&mut self, id: u64) -> Option<&mut Member<D>> {
        self.members.iter_mut().find(|member| member.id == id)
    }
}

/// A place on a connection, given back when dropped.
pub(super) struct Lease<D: Dial> {
    id: u64,
    connection: Connection,
    info: D::Info,
    reused: bool,
    key: D::Key,
    /// `None` if the place was given back already.
    pool: Option<Arc<Inner<D>>>,
}

impl<D: Dial> Lease<D> {
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(super) fn info(&self) -> &D::Info {
        &self.info
    }

    /// Whether the connection had carried streams before.
    pub(super) fn reused(&self) -> bool {
        self.reused
    }

    pub(super) fn key(&self) -> &D::Key {
        &self.key
    }
}

impl<D: Dial> Drop for Lease<D> {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.with_group(&self.key, |group| group.give_back(self.id));
        }
    }
}
