use std::env::VarError;
use std::ffi::OsString;

use super::*;
use crate::trace::TraceId;

const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector.test:4318");

fn read(
    option: Option<&str>,
    variables: &[(&str, &str)],
) -> Result<Option<Settings>, SettingsError> {
    Settings::read(option, true, |name| {
        let set = variables.iter().find(|(known, _)| *known == name);
        set.map(|(_, value)| (*value).to_owned())
            .ok_or(VarError::NotPresent)
    })
}

fn good(variables: &[(&str, &str)]) -> Settings {
    let all = [&[ENDPOINT], variables].concat();
    read(None, &all).unwrap().unwrap()
}

#[track_caller]
fn bad(variables: &[(&str, &str)]) -> String {
    let all = [&[ENDPOINT], variables].concat();
    read(None, &all).unwrap_err().to_string()
}

#[test]
fn endpoints_are_those_of_opentelemetry() {
    let traces = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
    let base = "OTEL_EXPORTER_OTLP_ENDPOINT";
    for (name, url, shown, path) in [
        (
            base,
            "http://c.test:4318",
            "http://c.test:4318",
            "/v1/traces",
        ),
        (
            base,
            "http://c.test:4318/",
            "http://c.test:4318",
            "/v1/traces",
        ),
        (
            base,
            "http://c.test/a/b",
            "http://c.test:80",
            "/a/b/v1/traces",
        ),
        (traces, "http://c.test:4318", "http://c.test:4318", "/"),
        (
            traces,
            "http://[::1]:4318/in?key=x",
            "http://[::1]:4318",
            "/in?key=x",
        ),
        (
            "",
            "http://127.0.0.1:4318/",
            "http://127.0.0.1:4318",
            "/v1/traces",
        ),
    ] {
        let settings = match name {
            "" => read(Some(url), &[]),
            name => read(None, &[(name, url)]),
        };
        let settings = settings.unwrap().unwrap();
        assert_eq!(settings.collector(), shown);
        assert_eq!(settings.collector.path, path, "{url}");
        assert!(settings.tls.is_none());
    }
    let both = [(base, "http://base.test"), (traces, "http://traces.test")];
    let both = read(None, &both).unwrap().unwrap();
    assert_eq!(both.collector(), "http://traces.test:80");
    let option = read(Some("http://option.test"), &[ENDPOINT])
        .unwrap()
        .unwrap();
    assert_eq!(option.collector(), "http://option.test:80");
}

#[test]
fn without_an_endpoint_spans_go_nowhere() {
    let lookup = |_: &str| Ok("http://c.test".to_owned());
    assert!(Settings::read(None, false, lookup).unwrap().is_none());
    for variables in [
        &[][..],
        &[(ENDPOINT.0, "")],
        &[ENDPOINT, ("OTEL_SDK_DISABLED", "true")],
        &[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")],
        // Nothing is amiss as long as it is not used.
        &[("OTEL_TRACES_SAMPLER", "nonsense")],
    ] {
        assert!(read(None, variables).unwrap().is_none(), "{variables:?}");
    }
}

#[test]
fn what_is_no_endpoint_is_told_without_showing_it() {
    for (url, why) in [
        ("collector:4318", "scheme"),
        ("s3cret", "no URL"),
        ("grpc://c.test", "scheme"),
        ("http://", "no URL"),
        ("http://u:s3cret@c.test", "OTEL_EXPORTER_OTLP_HEADERS"),
        ("http://c.test:0", "port"),
        ("http://c.test:99999", "no URL"),
        ("http://c.test/?key=s3cret", "more than"),
        ("http://c.test/#s3cret", "more than"),
        ("http://-c.test", "host"),
    ] {
        let error = read(Some(url), &[]).unwrap_err().to_string();
        assert!(error.contains(why), "{url}: {error}");
        assert!(error.starts_with("--otlp-endpoint "), "{error}");
        assert!(!error.contains("s3cret"), "{error}");
    }
    let variables = [(ENDPOINT.0, "c.test")];
    let error = read(None, &variables).unwrap_err().to_string();
    assert!(error.starts_with(ENDPOINT.0), "{error}");
}

#[test]
fn only_our_protocol_is_taken() {
    let name = "OTEL_EXPORTER_OTLP_PROTOCOL";
    good(&[(name, "http/protobuf")]);
    let error = bad(&[(name, "grpc")]);
    assert!(error.contains(name) && error.contains("`grpc`"), "{error}");
    // It is about the endpoint beside it.
    assert!(read(Some("http://c.test"), &[(name, "grpc")]).is_ok());
}

#[test]
fn headers_are_decoded_and_do_not_show() {
    let name = "OTEL_EXPORTER_OTLP_HEADERS";
    let settings = good(&[(name, "api-key=s3cret%20k%3D, X-Scope = a=b ,")]);
    assert_eq!(settings.headers["api-key"], "s3cret k=");
    assert_eq!(settings.headers["x-scope"], "a=b");
    assert!(!format!("{settings:?}").contains("s3cret"));
    for (value, number, why) in [
        ("s3cret", "entry 1", "no name"),
        ("a=b,=s3cret", "entry 2", "no name"),
        ("a b=s3cret", "entry 1", "no name of a header"),
        ("a=s3cret%0Ax", "entry 1", "cannot be sent"),
        ("a=s3cret%FF", "entry 1", "no text"),
        ("Host=s3cret", "entry 1", "cannot be set"),
    ] {
        let error = bad(&[(name, value)]);
        assert!(error.contains(name) && error.contains(number), "{error}");
        assert!(error.contains(why) && !error.contains("s3cret"), "{error}");
    }
    let error = Settings::read(Some("http://c.test"), true, |asked| match asked {
        "OTEL_EXPORTER_OTLP_HEADERS" => Err(VarError::NotUnicode(OsString::from("s3cret"))),
        _ => Err(VarError::NotPresent),
    });
    assert_eq!(
        error.unwrap_err().to_string(),
        format!("{name} is not UTF-8")
    );
}

#[test]
fn the_resource_is_the_agent_unless_somebody_says_otherwise() {
    let value = |settings: &Settings, key: &str| -> Vec<String> {
        let all = settings.resource.iter();
        all.filter(|(known, _)| known == key)
            .map(|(_, value)| value.clone())
            .collect()
    };
    let plain = good(&[]);
    assert_eq!(value(&plain, "service.name"), ["underpass"]);
    let attributes = (
        "OTEL_RESOURCE_ATTRIBUTES",
        "service.name=a,k8s.node.name=n%2C1",
    );
    let settings = good(&[attributes]);
    assert_eq!(value(&settings, "service.name"), ["a"]);
    assert_eq!(value(&settings, "k8s.node.name"), ["n,1"]);
    let settings = good(&[attributes, ("OTEL_SERVICE_NAME", "b")]);
    assert_eq!(value(&settings, "service.name"), ["b"]);
    let error = bad(&[("OTEL_RESOURCE_ATTRIBUTES", "a=b,c")]);
    assert!(error.contains("entry 2"), "{error}");
}

#[test]
fn the_sampler_joins_traces_unless_somebody_says_otherwise() {
    assert_eq!(good(&[]).sampler, Sampler::default());
    let name = "OTEL_TRACES_SAMPLER";
    let ratio = good(&[(name, "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0")]);
    assert!(!ratio.sampler.samples(None, TraceId::random().unwrap()));
    assert!(bad(&[(name, "mostly")]).contains("OTEL_TRACES_SAMPLER: `mostly`"));
    let error = bad(&[(name, "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "2")]);
    assert!(error.contains("`2` is no share"), "{error}");
}

#[test]
fn tls_needs_somebody_to_trust() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("ca.pem");
    let https = |path: &str| {
        read(
            Some("https://c.test"),
            &[("OTEL_EXPORTER_OTLP_CERTIFICATE", path)],
        )
    };
    let shown = path.to_str().unwrap();
    let error = https(shown).unwrap_err().to_string();
    assert!(
        error.contains("OTEL_EXPORTER_OTLP_CERTIFICATE: cannot read"),
        "{error}"
    );
    std::fs::write(&path, "nothing").unwrap();
    let error = https(shown).unwrap_err().to_string();
    assert!(
        error.starts_with("TLS to the collector is not possible: "),
        "{error}"
    );
    let authority = crate::tls::testing::Authority::new("collector's");
    std::fs::write(&path, authority.pem()).unwrap();
    let settings = https(shown).unwrap().unwrap();
    assert_eq!(settings.collector(), "https://c.test:443");
    assert!(settings.tls.is_some());
}
