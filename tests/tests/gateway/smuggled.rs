//! Requests that can be understood in two ways reach no target, whether they come first on a
//! connection or behind a request that was served.

use underpass_tests::addr::OTHER_V4;
use underpass_tests::smuggling::{LATER, answers, expect_refused, shapes, shown};

use super::*;

/// Behind every shape: the request that would be smuggled in.
const SMUGGLED: &str = "GET http://other.example/smuggled HTTP/1.1\r\nHost: other.example\r\n\r\n";

/// Before it, if it is not the first.
const GOOD: &str = "GET http://site.example/good HTTP/1.1\r\nHost: site.example\r\n\r\n";

#[test]
fn none_of_eighty_shapes_is_forwarded() {
    let scene = Scene::new("gateway-smuggling");
    let inet = scene.world.inet();
    // Whoever gets this far is seen.
    let target = Server::echo(inet, SocketAddr::from((OTHER_V4, 80)));
    let mut gateway = start(&scene, &["--allow", "*:80", "--log-format", "json"]);
    let raw = |texts: &[String]| answers(scene.world.host().python("raw"), proxy_v4(), texts);

    let mut shapes = shapes("http://other.example");
    assert!(shapes.len() >= 80, "{}", shapes.len());
    // One that is no preface of HTTP/2, which is another way to begin.
    shapes.extend(LATER[..2].iter().map(ToString::to_string));
    let alone: Vec<String> = shapes
        .iter()
        .map(|shape| format!("{shape}{SMUGGLED}"))
        .collect();
    for (shape, (answer, _)) in shapes.iter().zip(raw(&alone)) {
        expect_refused(shape, &answer);
    }
    assert_eq!(scene.nginx.requests(), []);

    let refused = shapes.len();
    shapes.push(LATER[2].to_owned());
    let behind: Vec<String> = shapes
        .iter()
        .map(|shape| format!("{GOOD}{shape}{SMUGGLED}"))
        .collect();
    for (shape, (answer, _)) in shapes.iter().zip(raw(&behind)) {
        let rest = answer.strip_prefix("HTTP/1.1 200 OK\r\n");
        let rest = rest.unwrap_or_else(|| panic!("{:?} spoils {answer:?}", shown(shape)));
        let at = rest.find("HTTP/1.1 ").unwrap_or(rest.len());
        expect_refused(shape, &rest[at..]);
    }
    let requests = scene.nginx.requests();
    let paths: Vec<&str> = requests.iter().map(|one| one.path.as_str()).collect();
    assert_eq!(paths, vec!["/good"; shapes.len()]);
    assert_eq!(target.peers(), []);
    gateway.stop();
    let log = gateway.stderr();
    let codes = |code: &str| log.matches(&format!("\"code\":{code},")).count();
    assert_eq!(
        codes("400") + codes("431"),
        refused + shapes.len(),
        "one for each"
    );
    assert_eq!(codes("200"), shapes.len());
    // It is not that nothing goes there.
    let _gateway = start(&scene, &["--allow", "*:80"]);
    let last = "\r\nConnection: close\r\n\r\n";
    raw(&[SMUGGLED.replace("\r\n\r\n", last)]);
    assert_eq!(target.peers().len(), 1);
}
