//! What is answered where.

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use prometheus::{TEXT_FORMAT, TextEncoder};
use serde_json::{Value, json};

use super::AdminState;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

static ADMIN: [Route; 4] = [
    Route::get("/config_dump", config_dump),
    Route::get("/connections", connections),
    Route {
        path: "/logging",
        get: logging,
        post: Some(set_logging),
    },
    Route::get("/status", status),
];
static METRICS: [Route; 2] = [
    Route::get("/metrics", metrics),
    Route::get("/stats/prometheus", metrics),
];
static READY: [Route; 2] = [
    Route::get("/healthz/live", live),
    Route::get("/healthz/ready", ready),
];

/// One of the listeners, and what it serves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Room {
    Admin,
    Metrics,
    Ready,
}

impl Room {
    /// The flag that says where it listens.
    pub(super) fn flag(self) -> &'static str {
        match self {
            Self::Admin => "--admin-addr",
            Self::Metrics => "--metrics-addr",
            Self::Ready => "--ready-addr",
        }
    }

    /// For the log.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin requests",
            Self::Metrics => "scrapes",
            Self::Ready => "health checks",
        }
    }

    fn routes(self) -> &'static [Route] {
        match self {
            Self::Admin => &ADMIN,
            Self::Metrics => &METRICS,
            Self::Ready => &READY,
        }
    }

    /// The answer to `request`; its body is never looked at.
    pub(super) fn answer<B>(
        self,
        state: &AdminState,
        request: &Request<B>,
    ) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        let Some(route) = self.routes().iter().find(|route| route.path == path) else {
            return Answer::text(StatusCode::NOT_FOUND, self.help()).into();
        };
        let query = request.uri().query().unwrap_or_default();
        match (request.method(), route.post) {
            (&Method::GET, _) => (route.get)(state, query).into(),
            (&Method::POST, Some(post)) => post(state, query).into(),
            (_, post) => {
                let allow = if post.is_some() { "GET, POST" } else { "GET" };
                let text = format!("{path} takes {allow} only\n");
                let mut response: Response<_> =
                    Answer::text(StatusCode::METHOD_NOT_ALLOWED, text).into();
                let headers = response.headers_mut();
                headers.insert(ALLOW, HeaderValue::from_static(allow));
                response
            }
        }
    }

    fn help(self) -> String {
        let mut text = "there is no such path; here are:\n".to_owned();
        for route in self.routes() {
            text.push_str("  GET  ");
            text.push_str(route.path);
            text.push('\n');
            if route.post.is_some() {
                text.push_str("  POST ");
                text.push_str(route.path);
                text.push_str("?level=FILTER\n");
            }
        }
        text
    }
}

struct Route {
    path: &'static str,
    get: Handler,
    post: Option<Handler>,
}

/// Takes the query of the request.
type Handler = fn(&AdminState, &str) -> Answer;

impl Route {
    const fn get(path: &'static str, get: Handler) -> Self {
        Self {
            path,
            get,
            post: None,
        }
    }
}

struct Answer {
    status: StatusCode,
    content_type: &'static str,
    body: String,
}

impl Answer {
    fn text(status: StatusCode, body: impl Into<String>) -> Self {
        Self {
            status,
            content_type: TEXT,
            body: body.into(),
        }
    }

    fn json(value: &Value) -> Self {
        Self {
            status: StatusCode::OK,
            content_type: JSON,
            body: format!("{value:#}\n"),
        }
    }
}

impl From<Answer> for Response<Full<Bytes>> {
    fn from(answer: Answer) -> Self {
        let mut response = Response::new(Full::from(answer.body));
        *response.status_mut() = answer.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        response
    }
}

fn metrics(state: &AdminState, _query: &str) -> Answer {
    match TextEncoder::new().encode_to_string(&state.registry.gather()) {
        Ok(body) => Answer {
            status: StatusCode::OK,
            content_type: TEXT_FORMAT,
            body,
        },
        Err(error) => {
            tracing::error!(%error, "the metrics cannot be written");
            Answer::text(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("the metrics cannot be written: {error}\n"),
            )
        }
    }
}

fn live(_state: &AdminState, _query: &str) -> Answer {
    Answer::text(StatusCode::OK, "live\n")
}

fn ready(state: &AdminState, _query: &str) -> Answer {
    let problems = state.readiness.problems();
    if problems.is_empty() {
        Answer::text(StatusCode::OK, "ready\n")
    } else {
        Answer::text(StatusCode::SERVICE_UNAVAILABLE, problems.join("\n") + "\n")
    }
}

fn config_dump(state: &AdminState, _query: &str) -> Answer {
    Answer::json(&(state.config_dump)())
}

fn connections(state: &AdminState, _query: &str) -> Answer {
    Answer::json(&state.connections.snapshot().into())
}

/// Readiness, and then what the agent says of itself.
fn status(state: &AdminState, _query: &str) -> Answer {
    let mut status = json!({
        "ready": state.readiness.ready(),
        "checks": state.readiness.to_json(),
    });
    if let (Value::Object(status), Value::Object(own)) = (&mut status, (state.status)()) {
        status.extend(own);
    }
    Answer::json(&status)
}

fn logging(state: &AdminState, _query: &str) -> Answer {
    Answer::text(StatusCode::OK, state.log.filter() + "\n")
}

fn set_logging(state: &AdminState, query: &str) -> Answer {
    let Some((_, filter)) =
        url::form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "level")
    else {
        return Answer::text(
            StatusCode::BAD_REQUEST,
            "say which: POST /logging?level=info, or level=warn,underpass=debug\n",
        );
    };
    match state.log.set_filter(&filter) {
        Ok(()) => {
            tracing::info!(filter = &*filter, "log filter changed");
            Answer::text(StatusCode::OK, format!("{filter}\n"))
        }
        Err(error) => Answer::text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}
