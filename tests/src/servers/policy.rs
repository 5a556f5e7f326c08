//! Policy that leads everything through a forward proxy, all of it in documents.

use std::fmt::Write as _;

use super::forward::{Credentials, Options};
use super::stage::Stage;

/// A Tunnel for everything through the proxy that was started with `options`, which is asked by
/// `protocol` (`HTTP-CONNECT`, …) with `credentials`. A ServiceEntry describes it, a DestinationRule
/// says how TLS is spoken, and a Secret has the credentials.
pub fn policy(
    stage: &Stage,
    protocol: &str,
    options: &Options<'_>,
    credentials: Credentials<'_>,
) -> String {
    let port = options.port;
    let (authentication, secret) = match credentials {
        Credentials::None => ("", String::new()),
        Credentials::Basic(user, password) => (
            "{ credentialName: proxy }",
            format!("{{ username: {user}, password: {password} }}"),
        ),
        Credentials::Bearer(token) => {
            ("{ credentialName: proxy }", format!("{{ token: {token} }}"))
        }
    };
    let mut policy = format!(
        "apiVersion: underpass.dev/v1alpha1
kind: Tunnel
metadata: {{ name: everything }}
spec:
  proxy:
    host: proxy.example
    authentication: {authentication}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{ name: proxy }}
spec:
  hosts: [proxy.example]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{{ number: {port}, name: proxy, protocol: {protocol} }}]
"
    );
    if !secret.is_empty() {
        let _ = write!(
            policy,
            "---
apiVersion: v1
kind: Secret
metadata: {{ name: proxy }}
stringData: {secret}
"
        );
    }
    if options.security.identity().is_some() {
        let own = match options.security.client_ca() {
            None => "mode: SIMPLE".to_owned(),
            Some(_) => format!(
                "mode: MUTUAL, clientCertificate: {}, privateKey: {}",
                stage.client.certificate.display(),
                stage.client.key.display()
            ),
        };
        let _ = write!(
            policy,
            "---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{ name: proxy }}
spec:
  host: proxy.example
  trafficPolicy:
    tls: {{ {own}, caCertificates: {} }}
",
            stage.scene.pki.ca().display()
        );
    }
    policy
}
