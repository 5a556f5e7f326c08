//! What a container may call: `RuntimeDefault`, as the tools of CRI-O and podman have it.

use serde_json::{Value, json};

/// Of the profile, which is for all machines and capabilities, what is for this one and these.
pub(super) fn for_capabilities(profile: &Value, capabilities: &[&str]) -> Value {
    let architecture = match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    };
    let is_here = |name: &Value| name == architecture;
    let is_granted = |name: &Value| capabilities.iter().any(|granted| name == granted);
    let rules = profile["syscalls"].as_array().into_iter().flatten();
    let syscalls: Vec<Value> = rules
        .filter(|rule| {
            let (wanted, unwanted) = (&rule["includes"], &rule["excludes"]);
            list(&wanted["caps"]).iter().all(is_granted)
                && !list(&unwanted["caps"]).iter().any(is_granted)
                && (list(&wanted["arches"]).is_empty()
                    || list(&wanted["arches"]).iter().any(is_here))
                && !list(&unwanted["arches"]).iter().any(is_here)
        })
        .map(|rule| {
            let mut own = json!({"names": rule["names"], "action": rule["action"]});
            for (key, as_is) in [("errnoRet", &rule["errnoRet"]), ("args", &rule["args"])] {
                if !as_is.is_null() {
                    own[key] = as_is.clone();
                }
            }
            own
        })
        .collect();
    json!({
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "syscalls": syscalls,
    })
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_chosen_by_capabilities() {
        let profile = json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [
                {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [], "includes": {}},
                {"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["bpf"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1,
                 "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["other"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390"]}},
            ],
        });
        let chosen = |capabilities: &[&str]| -> Vec<Value> {
            let rules = &for_capabilities(&profile, capabilities)["syscalls"];
            let rules = rules.as_array().expect("rules");
            rules.iter().map(|rule| rule["action"].clone()).collect()
        };
        assert_eq!(chosen(&[]), ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"]);
        assert_eq!(
            chosen(&["CAP_SYS_ADMIN"]),
            ["SCMP_ACT_ALLOW", "SCMP_ACT_ALLOW"]
        );
    }
}
