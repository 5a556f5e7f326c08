//! Pods: network namespaces of their own beside the world's host, with cgroups as a kubelet makes
//! them.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::addr::{HOST_V4, HOST_V6};
use crate::cgroup::Cgroup;
use crate::process::{Cmd, Running};
use crate::{Must as _, Place, World};

const SECONDS: Duration = Duration::from_secs(20);

/// What a pod sees as its router; every pod has it on a wire of its own.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The same with IPv6, and of which network pods are.
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
const PODS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 0);

/// How kubelet calls the cgroup of all pods, with systemd.
const KUBEPODS: &str = "kubepods.slice";

/// How the names of the host's ends of wires begin; none is used twice.
const WIRE: &str = "pod";

/// The cgroups above those of pods, and the way of pods out of the host: without an agent a pod
/// reaches every target.
pub struct Node<'a> {
    world: &'a World,
    kubepods: Cgroup,
    wires: AtomicU32,
}

impl<'a> Node<'a> {
    /// Makes the host of `world` a node, whose pods are below the workload's cgroup.
    #[track_caller]
    pub fn new(world: &'a World) -> Self {
        Self::with(world, world.workload().child(KUBEPODS))
    }

    /// The same, with the pods where an agent finds them that is not told which cgroup to capture.
    #[track_caller]
    pub fn of_cluster(world: &'a World) -> Self {
        Self::with(world, world.root().child(KUBEPODS))
    }

    #[track_caller]
    fn with(world: &'a World, kubepods: Cgroup) -> Self {
        for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            world.host().set_net(switch, "1");
        }
        ip(
            world.inet(),
            format!(
                "route replace 10.77.0.0/16 via {HOST_V4}\n\
                 route replace {PODS_V6}/64 via {HOST_V6}\n"
            ),
        );
        Self {
            world,
            kubepods,
            wires: AtomicU32::new(0),
        }
    }

    /// The cgroup of the container of a pod, as policy names it.
    pub fn container_of(&self, number: u8) -> String {
        let [pod, container] = names(number);
        format!("{}/{pod}/{container}", self.kubepods.name())
    }

    /// The cgroup of all pods.
    pub fn kubepods(&self) -> &Cgroup {
        &self.kubepods
    }

    /// Starts a pod on the network of the node, whose cgroup has this name for it.
    #[track_caller]
    pub fn start_on_host(&self, uid: &str) -> HostPod {
        let name = format!("kubepods-pod{}.slice", uid.replace('-', "_"));
        let pod = self.kubepods.child(&name);
        let container = pod.child(&format!("cri-containerd-{:064x}.scope", 1));
        HostPod {
            container,
            _pod: pod,
            place: self.world.host().clone(),
        }
    }

    /// How many wires of pods there are. One ends with the pod's network namespace, which the kernel
    /// frees some time after the last process and the last descriptor have let it go.
    #[track_caller]
    pub fn wires(&self) -> usize {
        let ip = self.world.host().command("ip").args(["-o", "link"]);
        let links = ip.run(SECONDS).expect_success().stdout;
        let names = links.lines().filter_map(|line| line.split(' ').nth(1));
        names.filter(|name| name.starts_with(WIRE)).count()
    }

    /// Starts a pod. No two that live at a time have the same number.
    #[track_caller]
    pub fn start(&self, number: u8) -> Pod {
        let pod = self.start_idle(number);
        let Pod { wire, place, .. } = &pod;
        let address = Ipv4Addr::new(10, 77, 0, number);
        let address6 = address_v6(number);
        ip(
            self.world.host(),
            format!(
                "link set {wire} up\n\
                 address add {GATEWAY}/32 dev {wire}\n\
                 route replace {address}/32 dev {wire}\n\
                 address add {GATEWAY_V6}/128 dev {wire} nodad\n\
                 route replace {address6}/128 dev {wire}\n",
            ),
        );
        ip(
            place,
            format!(
                "link set lo up\n\
                 link set eth0 up\n\
                 address add {address}/32 dev eth0\n\
                 route add {GATEWAY} dev eth0\n\
                 route add 192.0.2.0/24 via {GATEWAY} dev eth0\n\
                 route add 203.0.113.0/24 via {GATEWAY} dev eth0\n\
                 address add {address6}/128 dev eth0 nodad\n\
                 route add {GATEWAY_V6}/128 dev eth0\n\
                 route add 2001:db8::/32 via {GATEWAY_V6} dev eth0\n"
            ),
        );
        pod
    }

    /// Starts one that has no address yet, nor loopback, which takes less time.
    #[track_caller]
    pub fn start_idle(&self, number: u8) -> Pod {
        let [pod, container] = names(number);
        let pod = self.kubepods.child(&pod);
        let container = pod.child(&container);
        let host = self.world.host();
        let place = host.with_own_network().must("make a network namespace");
        let wire = format!("{WIRE}{}", self.wires.fetch_add(1, Ordering::Relaxed));
        let path = place.net_path();
        ip(
            host,
            format!("link add {wire} type veth peer name eth0 netns {path}\n"),
        );
        let pause = place.command("sleep").arg("1000").in_cgroup(&container);
        Pod {
            _pause: pause.start(),
            container,
            pod,
            wire,
            place,
        }
    }
}

/// The IPv6 address of a pod.
pub fn address_v6(number: u8) -> Ipv6Addr {
    Ipv6Addr::from_bits(PODS_V6.to_bits() | u128::from(number))
}

/// What the cgroup of a pod calls it.
pub fn uid(number: u8) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}

/// The cgroups of a pod and of its container, as containerd and systemd name them.
fn names(number: u8) -> [String; 2] {
    [
        format!("kubepods-pod{}.slice", uid(number).replace('-', "_")),
        format!("cri-containerd-{number:064x}.scope"),
    ]
}

/// A pod with `hostNetwork`.
pub struct HostPod {
    container: Cgroup,
    _pod: Cgroup,
    place: Place,
}

impl HostPod {
    /// A program in its container.
    pub fn command(&self, program: &str) -> Cmd {
        self.place.command(program).in_cgroup(&self.container)
    }

    /// One of the scripts in `programs/` in its container.
    pub fn program(&self, name: &str) -> Cmd {
        self.place.python(name).in_cgroup(&self.container)
    }
}

/// One pod; everything of it ends when it is dropped.
pub struct Pod {
    _pause: Running,
    container: Cgroup,
    pod: Cgroup,
    wire: String,
    place: Place,
}

impl Pod {
    /// A program in its container.
    pub fn command(&self, program: &str) -> Cmd {
        self.place.command(program).in_cgroup(&self.container)
    }

    /// One of the scripts in `programs/` in its container.
    pub fn program(&self, name: &str) -> Cmd {
        self.place.python(name).in_cgroup(&self.container)
    }

    /// Another container of it, whose runtime has this id for it.
    pub fn another(&self, id: &str) -> Cgroup {
        self.pod.child(&format!("cri-containerd-{id}.scope"))
    }

    /// Its network namespace.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The cgroup of its container.
    pub fn container(&self) -> &Cgroup {
        &self.container
    }
}

#[track_caller]
fn ip(place: &Place, commands: String) {
    let done = place.command("ip").args(["-batch", "-"]).input(commands);
    done.run(SECONDS).expect_success();
}
