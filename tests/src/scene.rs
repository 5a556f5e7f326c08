//! What nearly every test begins with: a world with a name server and a site in it.

use crate::World;
use crate::curl::{Curl, Seen};
use crate::pki::Pki;
use crate::process::Cmd;
use crate::servers::dns::Dns;
use crate::servers::nginx::Nginx;

/// A world with `site.example` and a name server. The world is the last to end.
pub struct Scene {
    /// The site.
    pub nginx: Nginx,
    /// The name server.
    pub dns: Dns,
    /// The authority that vouches for the site.
    pub pki: Pki,
    /// The world.
    pub world: World,
}

impl Scene {
    /// Makes the scene of the test `name`.
    #[track_caller]
    pub fn new(name: &str) -> Self {
        let world = World::new(name);
        let dns = Dns::start(&world);
        let pki = Pki::new(&world);
        let nginx = Nginx::start(&world, &pki);
        Self {
            nginx,
            dns,
            pki,
            world,
        }
    }

    /// A request by a program that trusts the site's authority.
    pub fn curl(&self, url: &str) -> Curl {
        Curl::get(url).trusting(&self.pki.ca())
    }

    /// Runs curl as a workload.
    #[track_caller]
    pub fn captured(&self, curl: &Curl) -> Seen {
        curl.run(self.workload("curl"))
    }

    /// A program as a workload: its connections are captured once an agent runs.
    pub fn workload(&self, program: &str) -> Cmd {
        self.world
            .host()
            .command(program)
            .in_cgroup(self.world.workload())
    }

    /// One of the scripts in `programs/` as a workload.
    pub fn program(&self, name: &str) -> Cmd {
        self.world
            .host()
            .python(name)
            .in_cgroup(self.world.workload())
    }

    /// A client of gRPC as a workload; it reads what to do.
    pub fn grpc_client(&self, address: &str) -> Cmd {
        let program = self.world.host().debian_python("grpc_call");
        program
            .in_cgroup(self.world.workload())
            .env("GRPC_DNS_RESOLVER", "native")
            .arg(address)
    }
}
