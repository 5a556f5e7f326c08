//! The files of `deploy/crds`.

use underpass::policy::custom_resources;

/// Their names, and what is in them.
pub(crate) fn files() -> anyhow::Result<Vec<(String, String)>> {
    let files = custom_resources().into_iter().map(|resource| {
        let definition = serde_saphyr::to_string(&resource.definition)?;
        let text = format!("# Made by `cargo xtask crds` from the types of policy.\n{definition}");
        Ok((format!("{}.yaml", resource.name), text))
    });
    let mut files: Vec<(String, String)> = files.collect::<anyhow::Result<_>>()?;
    let names: String = files
        .iter()
        .map(|(name, _)| format!("  - {name}\n"))
        .collect();
    let kustomization = format!(
        "# Made by `cargo xtask crds`.\n\
         apiVersion: kustomize.config.k8s.io/v1beta1\n\
         kind: Kustomization\n\
         resources:\n{names}"
    );
    files.push(("kustomization.yaml".to_owned(), kustomization));
    Ok(files)
}
