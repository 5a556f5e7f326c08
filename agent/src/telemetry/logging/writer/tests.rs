use std::sync::mpsc::{Sender, channel};

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use super::*;

/// Waits for leave before each write.
struct Gated {
    leave: Receiver<()>,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Write for Gated {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Once the other side is gone there is leave for all.
        let _ = self.leave.recv();
        self.written.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn gated() -> (Queue, Sender<()>, Arc<Mutex<Vec<u8>>>) {
    let (give, leave) = channel();
    let written = Arc::new(Mutex::new(Vec::new()));
    let output = Gated {
        leave,
        written: Arc::clone(&written),
    };
    (Queue::start(Box::new(output)).unwrap(), give, written)
}

#[test]
fn an_output_that_is_stuck_holds_up_nobody() {
    let (mut queue, give, written) = gated();
    let lines = QUEUE + 100;
    for n in 0..lines {
        queue.write_all(format!("{n}\n").as_bytes()).unwrap();
    }
    // One more than the queue holds may be in the hands of the thread.
    let lost = queue.lost();
    assert!((99..=100).contains(&lost), "{lost} lost");
    assert!(!queue.flush(Duration::from_millis(20)));

    drop(give);
    assert!(queue.flush(Duration::from_secs(10)));
    let written = String::from_utf8(written.lock().clone()).unwrap();
    assert_eq!(written.lines().count() as u64, lines as u64 - lost);
    assert!(written.starts_with("0\n1\n2\n"));
}

/// Takes as much as each step says; an error where it says none.
struct Faulty {
    steps: Vec<Option<usize>>,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Write for Faulty {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let most = match self.steps.pop() {
            Some(None) => return Err(io::ErrorKind::StorageFull.into()),
            Some(Some(most)) => most,
            None => bytes.len(),
        };
        let n = most.min(bytes.len());
        self.written.lock().extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The numbers that warnings tell.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<(String, u64)>>>);

impl<S: Subscriber> Layer<S> for Told {
    fn on_event(&self, event: &Event<'_>, _ctx: Context<'_, S>) {
        event.record(&mut self.clone());
    }
}

impl Visit for Told {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.lock().push((field.name().to_owned(), value));
    }

    fn record_debug(&mut self, _field: &Field, _value: &dyn std::fmt::Debug) {}
}

#[test]
fn a_torn_line_spoils_no_other_and_losses_are_told() {
    let written = Arc::new(Mutex::new(Vec::new()));
    let lost = Arc::new(Lost::default());
    let drain = Drain {
        // From the last to the first: 3 bytes of `second`, then twice no room.
        output: Box::new(Faulty {
            steps: vec![None, None, Some(3), Some(6)],
            written: Arc::clone(&written),
        }),
        lost: Arc::clone(&lost),
        torn: false,
        told: None,
    };
    let (sender, receiver) = mpsc::sync_channel(8);
    for line in ["first\n", "second\n", "third\n", "fourth\n", "fifth\n"] {
        sender.send(Item::Line(line.into())).unwrap();
    }
    drop(sender);
    let told = Told::default();
    let subscriber = tracing_subscriber::registry().with(told.clone());
    tracing::subscriber::with_default(subscriber, || drain.run(&receiver));

    let written = String::from_utf8(written.lock().clone()).unwrap();
    assert_eq!(written, "first\nsec\nfourth\nfifth\n");
    assert_eq!(lost.total.load(Ordering::Relaxed), 2);
    let told = told.0.lock().clone();
    assert_eq!(told, [("lines".to_owned(), 2), ("total".to_owned(), 2)]);
}
