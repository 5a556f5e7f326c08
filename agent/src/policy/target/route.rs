//! Which requests have which times and retries.

use std::sync::Arc;
use std::time::Duration;

use super::retries::Retries;

/// The routes of a VirtualService, of which the first that matches counts.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HttpRoutes {
    /// The VirtualService.
    pub policy: Arc<str>,
    /// In their order.
    pub routes: Vec<HttpRoute>,
}

impl HttpRoutes {
    /// What is said of a request. `path` has no query; `port` is the one that the workload
    /// connects to.
    pub fn of(&self, method: &str, path: &str, port: u16) -> Option<&HttpRoute> {
        let is_one = |route: &&HttpRoute| {
            let mut matches = route.matches.iter();
            route.matches.is_empty() || matches.any(|one| one.is(method, path, port))
        };
        self.routes.iter().find(is_one)
    }
}

/// How long and how often requests are tried.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct HttpRoute {
    /// Which requests; none: all.
    pub matches: Vec<RouteMatch>,
    /// From the request to the end of its answer, with all retries.
    pub timeout: Option<Duration>,
    /// Unset: it is not tried again.
    pub retries: Option<Arc<Retries>>,
}

/// Tells requests by what they ask for. What is given must all be so.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RouteMatch {
    /// The path.
    pub path: PathMatch,
    /// The method.
    pub method: Option<Box<str>>,
    /// The port that the workload connects to.
    pub port: Option<u16>,
}

impl RouteMatch {
    fn is(&self, method: &str, path: &str, port: u16) -> bool {
        self.port.is_none_or(|only| only == port)
            && self.method.as_deref().is_none_or(|only| only == method)
            && match &self.path {
                PathMatch::Any => true,
                PathMatch::Exact(text) => **text == *path,
                PathMatch::Prefix(text) => path.starts_with(&**text),
            }
    }
}

/// How a path must be.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum PathMatch {
    /// As it likes.
    #[default]
    Any,
    /// Just so.
    Exact(Box<str>),
    /// With this at its beginning.
    Prefix(Box<str>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_matches_counts() {
        let route = |seconds, matches: Vec<RouteMatch>| HttpRoute {
            matches,
            timeout: Some(Duration::from_secs(seconds)),
            retries: None,
        };
        let path = |path| RouteMatch {
            path,
            ..RouteMatch::default()
        };
        let exact = || path(PathMatch::Exact("/exact".into()));
        let routes = HttpRoutes {
            policy: "VirtualService/a".into(),
            routes: vec![
                route(1, vec![exact()]),
                route(
                    2,
                    vec![RouteMatch {
                        method: Some("POST".into()),
                        port: Some(80),
                        ..path(PathMatch::Prefix("/api".into()))
                    }],
                ),
                route(3, vec![path(PathMatch::Prefix("/api".into())), exact()]),
            ],
        };
        let of = |method, path, port| {
            let route = routes.of(method, path, port);
            route
                .and_then(|route| route.timeout)
                .map(|time| time.as_secs())
        };
        assert_eq!(of("GET", "/exact", 80), Some(1));
        assert_eq!(of("GET", "/exact/", 80), None);
        assert_eq!(of("POST", "/api/v1", 80), Some(2));
        assert_eq!(of("post", "/api/v1", 80), Some(3));
        assert_eq!(of("POST", "/api/v1", 81), Some(3));
        assert_eq!(of("GET", "/apis", 80), Some(3));
        assert_eq!(of("GET", "/API", 80), None);
        let all = HttpRoutes {
            routes: vec![route(4, Vec::new())],
            ..routes.clone()
        };
        assert!(all.of("GET", "/", 1).is_some());
    }
}
