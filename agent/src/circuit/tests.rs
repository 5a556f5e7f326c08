//! Limits that hold, whoever comes and goes.

use prometheus::Registry;
use proptest::prelude::*;
use tokio::time::advance;

use super::*;
use crate::policy::{HttpSettings, Outliers};
use crate::telemetry::scrape::Scrape;

struct World {
    registry: Registry,
    circuits: Circuits,
}

impl World {
    fn new() -> Self {
        let registry = Registry::new();
        let metrics = Arc::new(Metrics::new(&registry).unwrap());
        Self {
            registry,
            circuits: Circuits::new(metrics),
        }
    }

    fn at(&self, host: &str, settings: TargetSettings) -> Circuit {
        let policy = Arc::new(TargetPolicy {
            host: host.parse().unwrap(),
            port: 443,
            declared: "*.test".into(),
            settings: Arc::new(settings),
            routes: None,
        });
        let leads = Leads::Direct("192.0.2.1:443".parse().unwrap());
        self.circuits.of(Some(&policy), leads)
    }

    fn refused(&self, reason: &str) -> Option<f64> {
        let labels = [("destination_service", "*.test"), ("reason", reason)];
        Scrape::of(&self.registry).value("underpass_target_refused_total", &labels)
    }
}

fn settings() -> TargetSettings {
    TargetSettings {
        policy: Some("DestinationRule/a".into()),
        ..TargetSettings::default()
    }
}

fn up_to(connections: u32) -> TargetSettings {
    TargetSettings {
        max_connections: Some(connections),
        ..settings()
    }
}

#[test]
fn one_too_many_is_refused_and_counted() {
    let world = World::new();
    let limited = TargetSettings {
        max_connections: Some(1),
        http: HttpSettings {
            max_pending: Some(1),
            max_requests: Some(1),
            max_retries: Some(1),
            ..HttpSettings::default()
        },
        ..settings()
    };
    let circuit = world.at("a.test", limited.clone());
    let held = (
        circuit.connection().unwrap(),
        circuit.wait().unwrap(),
        circuit.request().unwrap(),
        circuit.retry().unwrap(),
    );
    // Also for who comes by another connection; not for another target.
    let same = world.at("a.test", limited.clone());
    assert!(world.at("b.test", limited).request().is_ok());
    let refusal = same.connection().unwrap_err();
    assert_eq!(refusal.limit, TargetLimit::Connections);
    assert_eq!(
        refusal.to_string(),
        "a.test:443 has 1 connections already (maxConnections), as DestinationRule/a has it"
    );
    assert!(same.wait().is_err() && same.request().is_err() && same.retry().is_err());
    for reason in ["connections", "pending_requests", "requests", "retries"] {
        assert_eq!(world.refused(reason), Some(1.0), "{reason}");
    }
    drop(held);
    assert!(same.connection().is_ok() && same.wait().is_ok());
    assert!(same.request().is_ok() && same.retry().is_ok());
}

#[test]
fn where_nothing_is_said_nothing_is_counted() {
    let world = World::new();
    let circuit = world.at("a.test", TargetSettings::default());
    assert!(circuit.settings().is_none());
    let many: Vec<_> = (0..100).map(|_| circuit.connection().unwrap()).collect();
    assert!(circuit.request().is_ok() && circuit.attempt().is_ok());
    drop(many);
    let leads = Leads::Tunnel(Target {
        host: "a.test".parse().unwrap(),
        port: 1,
    });
    assert!(world.circuits.of(None, leads).settings().is_none());
    assert!(world.circuits.table.lock().states.is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_waits_has_the_next_connection_in_turn() {
    let world = World::new();
    let circuit = world.at("a.test", up_to(1));
    let first = circuit.connection().unwrap();
    let wait = || async {
        let waiting = circuit.wait().unwrap();
        waiting.connection().await
    };
    let mut second = Box::pin(wait());
    let mut third = Box::pin(wait());
    assert!(futures_are_pending(&mut [&mut second, &mut third]).await);
    drop(first);
    let second = second.await.unwrap();
    assert!(futures_are_pending(&mut [&mut third]).await);
    // One who gives up passes on what it was promised.
    drop(second);
    drop(third);
    let fourth = wait().await.unwrap();
    drop(fourth);
    assert!(circuit.connection().is_ok());
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_ever() {
    let world = World::new();
    let circuit = world.at("a.test", up_to(1));
    let held = circuit.connection().unwrap();
    let waiting = circuit.wait().unwrap();
    let before = Instant::now();
    let refusal = waiting.connection().await.unwrap_err();
    assert_eq!(refusal.limit, TargetLimit::Connections);
    assert_eq!(before.elapsed(), MAX_WAIT);
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn one_that_is_idle_learns_that_it_is_wanted() {
    let world = World::new();
    let circuit = world.at("a.test", up_to(1));
    let idle = circuit.connection().unwrap();
    let mut wanted = idle.wanted();
    assert!(futures_are_pending(&mut [&mut wanted]).await);
    let waiting = circuit.wait().unwrap();
    let mut next = Box::pin(waiting.connection());
    assert!(futures_are_pending(&mut [&mut next]).await);
    wanted.await;
    // Also if it has not asked before.
    idle.wanted().await;
    drop(idle);
    drop(next.await.unwrap());
    let other = circuit.connection().unwrap();
    let mut wanted = other.wanted();
    assert!(futures_are_pending(&mut [&mut wanted]).await);
}

/// Polls each once.
async fn futures_are_pending<T>(futures: &mut [&mut Pin<Box<T>>]) -> bool
where
    T: Future + ?Sized,
{
    let mut pending = true;
    for future in futures {
        std::future::poll_fn(|cx| {
            pending &= future.as_mut().poll(cx).is_pending();
            std::task::Poll::Ready(())
        })
        .await;
    }
    pending
}

#[tokio::test(start_paused = true)]
async fn a_circuit_opens_and_one_try_closes_it() {
    let world = World::new();
    let fragile = TargetSettings {
        outliers: Some(Outliers {
            failures: 2,
            base: Duration::from_secs(10),
            ..Outliers::default()
        }),
        ..settings()
    };
    let circuit = world.at("a.test", fragile.clone());
    for _ in 0..2 {
        circuit.attempt().unwrap().ended(Outcome::Answered(503));
    }
    let refusal = circuit.attempt().unwrap_err();
    assert_eq!(refusal.limit, TargetLimit::Ejected);
    let text = "a.test:443 has kept failing: it is tried again in 10s, as DestinationRule/a has it";
    assert_eq!(refusal.to_string(), text);
    assert_eq!(world.refused("ejected"), Some(1.0));
    let ejections = "underpass_target_ejections_total";
    assert_eq!(Scrape::of(&world.registry).value(ejections, &[]), Some(1.0));
    // It is remembered while nobody uses it, and whatever else policy says of it by then.
    drop(circuit);
    advance(Duration::from_secs(10)).await;
    let circuit = world.at(
        "a.test",
        TargetSettings {
            max_connections: Some(9),
            ..fragile
        },
    );
    let trial = circuit.attempt().unwrap();
    assert!(circuit.attempt().is_err());
    drop(trial);
    circuit.attempt().unwrap().ended(Outcome::Answered(200));
    assert!(circuit.attempt().is_ok() && circuit.attempt().is_ok());
}

#[test]
fn memory_is_bounded() {
    let world = World::new();
    let used: Vec<_> = (0..10)
        .map(|n| {
            let circuit = world.at(&format!("used-{n}.test"), up_to(1));
            let place = circuit.connection().unwrap();
            (circuit, place)
        })
        .collect();
    for n in 0..3 * MAX_IDLE {
        let fragile = TargetSettings {
            outliers: Some(Outliers::default()),
            ..settings()
        };
        let circuit = world.at(&format!("n-{n}.test"), fragile);
        circuit.attempt().unwrap().ended(Outcome::Failed);
        assert!(world.circuits.table.lock().states.len() <= MAX_IDLE);
    }
    // Those that somebody uses are there all the same.
    for n in 0..10 {
        let circuit = world.at(&format!("used-{n}.test"), up_to(1));
        assert!(circuit.connection().is_err(), "{n}");
    }
    drop(used);
}

/// What one of several may do.
#[derive(Clone, Copy, Debug)]
enum Step {
    Take(u8),
    GiveBack(u8),
    Limits([Option<u32>; 4]),
}

fn step() -> impl Strategy<Value = Step> {
    let limit = || prop::option::of(1..5u32);
    prop_oneof![
        4 => (0..4u8).prop_map(Step::Take),
        4 => any::<u8>().prop_map(Step::GiveBack),
        1 => [limit(), limit(), limit(), limit()].prop_map(Step::Limits),
    ]
}

proptest! {
    /// Each count is what is held, and nothing is taken beyond a limit, whatever limits come into
    /// force meanwhile.
    #[test]
    fn counts_are_exact_and_limits_hold(steps in prop::collection::vec(step(), 0..200)) {
        const COUNTS: [Count; 4] =
            [Count::Connections, Count::Pending, Count::Requests, Count::Retries];
        let world = World::new();
        let mut limits = [None; 4];
        let mut held: Vec<(usize, Held)> = Vec::new();
        for step in steps {
            let circuit = world.at("a.test", TargetSettings {
                max_connections: limits[0],
                http: HttpSettings {
                    max_pending: limits[1],
                    max_requests: limits[2],
                    max_retries: limits[3],
                    ..HttpSettings::default()
                },
                ..settings()
            });
            match step {
                Step::Take(which) => {
                    let which = usize::from(which);
                    let before = held.iter().filter(|(one, _)| *one == which).count();
                    let taken = circuit.hold(COUNTS[which]);
                    let has_room = limits[which].is_none_or(|limit| before < limit as usize);
                    prop_assert_eq!(taken.is_ok(), has_room);
                    held.extend(taken.ok().map(|taken| (which, taken)));
                }
                Step::GiveBack(which) if !held.is_empty() => {
                    held.swap_remove(usize::from(which) % held.len());
                }
                Step::GiveBack(_) => {}
                Step::Limits(now) => limits = now,
            }
            let counts = circuit.0.as_ref().unwrap().state.inner.lock().counts;
            for (which, count) in COUNTS.into_iter().enumerate() {
                let there_are = held.iter().filter(|(one, _)| *one == which).count();
                prop_assert_eq!(counts.now(count) as usize, there_are);
            }
        }
    }

    /// However those who wait, give up and have had enough come after one another, no more have a
    /// connection than may, and while there is room nobody waits.
    #[test]
    fn nobody_is_forgotten(steps in prop::collection::vec((any::<u8>(), any::<u8>()), 0..100)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            const LIMIT: usize = 3;
            let world = World::new();
            let circuit = world.at("a.test", up_to(3));
            let mut waiting = Vec::new();
            let mut held = Vec::new();
            for (what, which) in steps {
                let which = usize::from(which);
                match what % 3 {
                    0 => {
                        let circuit = circuit.clone();
                        waiting.push(Box::pin(async move {
                            let waiting = circuit.wait().unwrap();
                            waiting.connection().await.unwrap()
                        }));
                    }
                    1 if !waiting.is_empty() => {
                        drop(waiting.swap_remove(which % waiting.len()));
                    }
                    2 if !held.is_empty() => {
                        drop(held.swap_remove(which % held.len()));
                    }
                    _ => {}
                }
                // Until nobody gets on any more.
                loop {
                    let mut has_got_on = false;
                    let mut index = 0;
                    while index < waiting.len() {
                        let got = std::future::poll_fn(|cx| {
                            std::task::Poll::Ready(waiting[index].as_mut().poll(cx))
                        }).await;
                        match got {
                            std::task::Poll::Ready(place) => {
                                held.push(place);
                                drop(waiting.swap_remove(index));
                                has_got_on = true;
                            }
                            std::task::Poll::Pending => index += 1,
                        }
                    }
                    if !has_got_on {
                        break;
                    }
                }
                prop_assert!(held.len() <= LIMIT);
                prop_assert!(held.len() == LIMIT || waiting.is_empty());
            }
            Ok(())
        })?;
    }
}
