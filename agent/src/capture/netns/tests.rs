use super::super::{CaptureConfig, Reach};
use super::*;

#[test]
fn the_namespace_has_one_cookie() {
    let first = option().unwrap();
    assert_eq!(first, option().unwrap());
}

/// What older kernels must be asked in another way: where there are both ways, they agree, and
/// asking twice works as well as once.
#[test]
#[ignore = "needs CAP_BPF; cargo xtask test runs it"]
fn the_hook_tells_the_same_cookie() {
    let mut object = Object::load(&CaptureConfig {
        max_connections: 16,
        reach: Reach::OwnNamespace,
        verbose: false,
    })
    .unwrap();
    let sockets = MarkedSockets::new(&mut object).unwrap();
    let told = ask::cookie(&mut object, &sockets).unwrap();
    assert_ne!(told, 0);
    assert_eq!(told, ask::cookie(&mut object, &sockets).unwrap());
    if let Some(option) = option().unwrap() {
        assert_eq!(told, option);
    }
}
