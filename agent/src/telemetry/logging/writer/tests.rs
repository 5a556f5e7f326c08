use std::sync::mpsc::{self, Receiver, channel};

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

fn gated() -> (Queue, mpsc::Sender<()>, Arc<Mutex<Vec<u8>>>) {
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
    let (queue, give, written) = gated();
    let line = [vec![b'x'; 1023], vec![b'\n']].concat();
    let lines = 2 * QUEUE / line.len() + 100;
    for _ in 0..lines {
        (&queue).write_all(&line).unwrap();
    }
    // Those that the thread has in hand may be as many again as wait.
    let lost = queue.lost();
    assert!(lost >= 100, "{lost} lost");
    assert!(!queue.flush(Duration::from_millis(20)));

    drop(give);
    assert!(queue.flush(Duration::from_secs(10)));
    let written = String::from_utf8(written.lock().clone()).unwrap();
    assert_eq!(written.lines().count() as u64, lines as u64 - lost);
    assert!(written.lines().all(|line| line.len() == 1023));
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
    let shared = Arc::new(Shared::default());
    let output = Faulty {
        // From the last to the first: 3 bytes of `second`, then twice no room.
        steps: vec![None, None, Some(3), Some(6)],
        written: Arc::clone(&written),
    };
    let drain = Drain::new(Box::new(output), Arc::clone(&shared));
    let queue = Queue(Arc::new(Sender(Arc::clone(&shared))));
    (&queue)
        .write_all(b"first\nsecond\nthird\nfourth\nfifth\n")
        .unwrap();
    drop(queue);
    let told = Told::default();
    let subscriber = tracing_subscriber::registry().with(told.clone());
    tracing::subscriber::with_default(subscriber, || drain.run());

    let written = String::from_utf8(written.lock().clone()).unwrap();
    assert_eq!(written, "first\nsec\nfourth\nfifth\n");
    assert_eq!(shared.lost.total.load(Ordering::Relaxed), 2);
    let told = told.0.lock().clone();
    assert_eq!(told, [("lines".to_owned(), 2), ("total".to_owned(), 2)]);
}
