//! What goes together: a head with what there is of its body, and neither with what is wrong in it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;

use super::*;

/// Keeps apart what is written with one call each.
#[derive(Debug, Default)]
struct Writes(Vec<Vec<u8>>);

impl AsyncWrite for Writes {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.push(bytes.to_vec());
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn each_wakes_its_reader_once() {
    let asked = "POST / HTTP/1.1\r\nHost: x.test\r\nContent-Length: 3\r\n\r\nabc";
    let chunked =
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n";
    for answer in ["HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", chunked] {
        // The client says no more, and stays.
        let (_client, near) = duplex(1024);
        let mut input = Input::new(near, Bytes::from_static(asked.as_bytes()));
        let request = next_request(&mut input, &QUICK).await.unwrap().unwrap();
        let mut output = Writes::default();
        let mut upstream = tokio::io::join(answer.as_bytes(), Writes::default());
        let client = Client {
            input: &mut input,
            output: &mut output,
        };
        let progress = Progress::default();
        let early = Bytes::new();
        let exchanged = exchange(
            &request,
            client,
            &mut upstream,
            early,
            false,
            PATIENCE,
            &progress,
        );
        exchanged.await.unwrap();
        assert_eq!(upstream.writer().0, [asked.as_bytes()]);
        assert_eq!(output.0, [answer.as_bytes()]);
    }
}

#[tokio::test]
async fn an_answer_whose_body_is_wrong_at_once_does_not_begin() {
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    for body in [
        "g\r\n",
        "1\r\nab\r\n",
        "3\r\nabc\r\n-1\r\n",
        "0\r\nno trailer\r\n\r\n",
    ] {
        let mut scene = Scene::new("GET / HTTP/1.1\r\nHost: x.test\r\n\r\n").await;
        scene.target_says(&format!("{head}{body}")).await;
        let (outcome, progress) = scene.outcome().await;
        let is_broken = matches!(outcome, Err(ExchangeError::BrokenAnswer(_)));
        assert!(is_broken, "{body:?}: {outcome:?}");
        assert_eq!(progress.status(), None, "another answer can be given");
    }
}
