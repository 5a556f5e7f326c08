//! Pods whose programs have a kernel of their own, or a machine: what they connect to never comes by the
//! hooks of the node's, so it cannot be captured.

use std::fs;
use std::path::Path;

/// The programs of a node that are such a sandbox, by the beginnings of their names, and what they are.
const PROGRAMS: [(&str, &str); 6] = [
    ("cloud-hypervisor", "virtual machine"),
    ("containerd-shim-kata", "Kata Containers"),
    ("firecracker", "virtual machine"),
    ("qemu-kvm", "virtual machine"),
    ("qemu-system", "virtual machine"),
    ("runsc", "gVisor"),
];

/// What kind of sandbox the process of this `/proc` is, if it is one. What a program is called is for its
/// owner to say; whose connections come by the hooks is captured nevertheless.
pub(super) fn kind(proc: &Path, process: u32) -> Option<&'static str> {
    // Unlike the command line, this waits for no lock that the process may hold.
    let program = fs::read_link(proc.join(process.to_string()).join("exe")).ok()?;
    let name = program.file_name()?.to_string_lossy();
    let mut programs = PROGRAMS.iter();
    let found = programs.find(|(beginning, _)| name.starts_with(beginning));
    found.map(|(_, kind)| *kind)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn sandboxes_are_known_by_their_programs() {
        let proc = tempfile::tempdir().unwrap();
        for (process, (program, expected)) in (1..).zip([
            ("/usr/local/bin/runsc", Some("gVisor")),
            ("/opt/kata/bin/qemu-system-x86_64", Some("virtual machine")),
            ("/usr/libexec/qemu-kvm", Some("virtual machine")),
            ("/usr/bin/cloud-hypervisor", Some("virtual machine")),
            ("/bin/firecracker (deleted)", Some("virtual machine")),
            (
                "/opt/kata/bin/containerd-shim-kata-v2",
                Some("Kata Containers"),
            ),
            ("/usr/bin/containerd-shim-runsc-v1", None),
            ("/usr/bin/runc", None),
            ("/pause", None),
        ]) {
            let directory = proc.path().join(process.to_string());
            fs::create_dir(&directory).unwrap();
            symlink(program, directory.join("exe")).unwrap();
            assert_eq!(kind(proc.path(), process), expected, "{program}");
        }
        assert_eq!(kind(proc.path(), 99), None);
    }
}
