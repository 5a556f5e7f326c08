//! Containers of our image, started by runc as a kubelet's runtime would from the manifest of a pod.
//!
//! Where the machine has both versions of cgroups, a container sees the second only, as on the nodes of
//! today: what it is given is below a cgroup of the world.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use crate::cgroup::{Cgroup, hierarchy};
use crate::process::Cmd;
use crate::{Must as _, World, tools};

mod seccomp;

/// Where a pod finds the hierarchy of its node.
pub const CGROUPS: &str = "/sys/fs/cgroup";

/// Leaves only the second version of cgroups, in the place where it mostly is, and becomes runc.
const SECOND_VERSION: &str = "umount --recursive /sys/fs/cgroup 2>/dev/null; \
     mount -t cgroup2 none /sys/fs/cgroup && exec runc \"$@\"";

/// The layout that `cargo xtask image` has made, with its tag: `$UNDERPASS_IMAGE`, or the one beside
/// this test.
#[track_caller]
pub fn image() -> String {
    let beside = || {
        let own = std::env::current_exe().must("find this program");
        let target = own.ancestors().nth(3);
        target
            .expect("a test runs from cargo's target folder")
            .join("image")
    };
    let path = std::env::var_os("UNDERPASS_IMAGE").map_or_else(beside, PathBuf::from);
    assert!(
        path.join("index.json").is_file(),
        "no image at {}: `cargo xtask image` makes it, UNDERPASS_IMAGE names another",
        path.display()
    );
    format!("{}:{}", path.display(), env!("CARGO_PKG_VERSION"))
}

/// What a pod's container is to be.
pub struct Container {
    config: Value,
    bundle: PathBuf,
    id: String,
}

impl Container {
    /// The first container of a DaemonSet, on the node that the world's host is.
    #[track_caller]
    pub fn of(world: &World, daemon_set: &Value) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let bundle = world.dir().join(format!("bundle-{number}"));
        fs::create_dir(&bundle).must("make a directory for the bundle");
        let image = unpack(&bundle);
        let pod = &daemon_set["spec"]["template"]["spec"];
        Self {
            config: config(world, pod, &image),
            bundle,
            id: format!("container-{number}"),
        }
    }

    /// Replaces an argument of its program by others.
    #[must_use]
    #[track_caller]
    pub fn replace(mut self, argument: &str, others: &[&str]) -> Self {
        let arguments = self.config["process"]["args"].as_array_mut();
        let arguments = arguments.expect("arguments");
        let place = arguments.iter().position(|one| one == argument);
        let place = place.unwrap_or_else(|| panic!("no {argument} in {arguments:?}"));
        arguments.splice(place..=place, others.iter().map(|one| json!(one)));
        self
    }

    /// Lets it see a file or directory, which it cannot change.
    #[must_use]
    #[track_caller]
    pub fn mount(mut self, source: &Path, destination: &str) -> Self {
        let mounts = self.config["mounts"].as_array_mut().expect("mounts");
        mounts.push(bind(&source.display().to_string(), destination, true));
        self
    }

    /// Does not let it see what it would find at this path.
    #[must_use]
    #[track_caller]
    pub fn without(mut self, destination: &str) -> Self {
        let mounts = self.config["mounts"].as_array_mut().expect("mounts");
        let before = mounts.len();
        mounts.retain(|mount| mount["destination"] != destination);
        assert!(mounts.len() < before, "nothing is mounted at {destination}");
        self
    }

    /// Gives it these capabilities and no others.
    #[must_use]
    pub fn capabilities(mut self, names: &[&str]) -> Self {
        set_capabilities(&mut self.config, names);
        self
    }

    /// Its capabilities.
    pub fn granted(&self) -> Vec<String> {
        let granted = &self.config["process"]["capabilities"]["bounding"];
        let granted = granted.as_array().into_iter().flatten();
        granted
            .filter_map(|name| Some(name.as_str()?.to_owned()))
            .collect()
    }

    /// The command that runs it in the foreground.
    #[track_caller]
    pub fn command(self, world: &World) -> Cmd {
        let config = self.bundle.join("config.json");
        fs::write(config, self.config.to_string()).must("write config.json");
        world
            .host()
            .command("unshare")
            .args(["--mount", "--", "sh", "-c", SECOND_VERSION, "runc"])
            .arg("--root")
            .arg(world.dir().join("runc"))
            .args(["run", "--bundle"])
            .arg(&self.bundle)
            .arg(&self.id)
    }
}

/// Where a container sees a cgroup of the test.
pub fn seen(cgroup: &Cgroup) -> String {
    let (_, mount) = hierarchy().must("find the cgroup v2 hierarchy");
    let below = cgroup
        .path()
        .strip_prefix(mount)
        .must("a cgroup is mounted");
    Path::new(CGROUPS).join(below).display().to_string()
}

/// Unpacks the image to `rootfs` of the bundle, by a program that has nothing to do with ours; returns
/// its configuration.
#[track_caller]
fn unpack(bundle: &Path) -> Value {
    let done = Command::new("umoci")
        .args(["unpack", "--image", &image()])
        .arg(bundle)
        .output()
        .must("start umoci");
    assert!(
        done.status.success(),
        "umoci: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    let config = fs::read_to_string(bundle.join("config.json")).must("read config.json");
    serde_json::from_str(&config).must("read config.json")
}

/// What containerd makes of such a pod for the runtime; from the image are its program and environment.
#[track_caller]
fn config(world: &World, pod: &Value, image: &Value) -> Value {
    let container = &pod["containers"][0];
    let security = &container["securityContext"];
    let namespaces: Vec<Value> = ["mount", "ipc", "uts", "cgroup"]
        .into_iter()
        .chain((pod["hostPID"] != true).then_some("pid"))
        .chain((pod["hostNetwork"] != true).then_some("network"))
        .map(|kind| json!({"type": kind}))
        .collect();
    let services = world.services().name();
    let mut config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "args": arguments(&image["process"]["args"], &container["args"]),
            "env": environment(&image["process"]["env"], &container["env"]),
            "cwd": "/",
            "user": {"uid": security["runAsUser"], "gid": security["runAsGroup"]},
            "noNewPrivileges": security["allowPrivilegeEscalation"] == false,
        },
        "root": {"path": "rootfs", "readonly": security["readOnlyRootFilesystem"]},
        "mounts": mounts(world, pod, container),
        "linux": {
            "cgroupsPath": format!("{services}/container-{}", pod["hostPID"] == true),
            "namespaces": namespaces,
            "maskedPaths": [
                "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    });
    assert_eq!(security["capabilities"]["drop"], json!(["ALL"]));
    let added = security["capabilities"]["add"].as_array();
    let added: Vec<String> = added
        .into_iter()
        .flatten()
        .filter_map(|name| Some(format!("CAP_{}", name.as_str()?)))
        .collect();
    let added: Vec<&str> = added.iter().map(String::as_str).collect();
    set_capabilities(&mut config, &added);
    config
}

/// A profile of what may be called depends on them as well.
fn set_capabilities(config: &mut Value, names: &[&str]) {
    config["process"]["capabilities"] =
        json!({"bounding": names, "effective": names, "permitted": names});
    let profile = tools::find("golang-github-containers-common/usr/share/containers/seccomp.json");
    let profile = profile.expect("no seccomp.json: `cargo xtask setup` unpacks it");
    let profile = fs::read_to_string(profile).must("read seccomp.json");
    let profile: Value = serde_json::from_str(&profile).must("read seccomp.json");
    config["linux"]["seccomp"] = seccomp::for_capabilities(&profile, names);
}

/// The image's program with the container's arguments.
fn arguments(program: &Value, arguments: &Value) -> Vec<Value> {
    let [program, arguments] = [program, arguments].map(|list| list.as_array().cloned());
    [program.unwrap_or_default(), arguments.unwrap_or_default()].concat()
}

fn environment(image: &Value, container: &Value) -> Vec<Value> {
    let mut all = image.as_array().cloned().unwrap_or_default();
    for variable in container.as_array().into_iter().flatten() {
        let value = match &variable["valueFrom"]["fieldRef"]["fieldPath"] {
            Value::Null => variable["value"].as_str().unwrap_or_default(),
            path if path == "spec.nodeName" => "node",
            other => panic!("what is {other}?"),
        };
        let name = variable["name"].as_str().expect("the name of a variable");
        all.push(json!(format!("{name}={value}")));
    }
    all
}

/// Those that every container has, files of the kubelet's, and those that the pod asks for.
fn mounts(world: &World, pod: &Value, container: &Value) -> Vec<Value> {
    let host = world.host().dir().display();
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc"}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "ro"]}),
        bind(&format!("{host}/resolv.conf"), "/etc/resolv.conf", true),
        bind(&format!("{host}/hosts"), "/etc/hosts", true),
    ];
    for mount in container["volumeMounts"].as_array().into_iter().flatten() {
        let volumes = pod["volumes"].as_array().into_iter().flatten();
        let mut named = volumes.filter(|volume| volume["name"] == mount["name"]);
        let path = &named.next().expect("a volume")["hostPath"]["path"];
        let (source, destination) = (path.as_str(), mount["mountPath"].as_str());
        mounts.push(bind(
            source.expect("a path of the node"),
            destination.expect("a path of the container"),
            mount["readOnly"] == true,
        ));
    }
    mounts
}

fn bind(source: &str, destination: &str, read_only: bool) -> Value {
    let access = if read_only { "ro" } else { "rw" };
    json!({
        "destination": destination,
        "type": "bind",
        "source": source,
        "options": ["rbind", "rprivate", access],
    })
}
