//! nginx in front of a cluster of etcd.

use std::path::Path;

/// The command that starts nginx, with its files in `dir`. nginx listens at `listen`, and passes everything on to `members`,
/// each of which is `host:port`.
pub(crate) fn command<'a>(dir: &Path, listen: &str, members: impl IntoIterator<Item = &'a str>) -> [String; 5] {
    let members: String = members.into_iter().map(|member| format!("server {member}; ")).collect();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|what| format!("{what}_temp_path {}/{what}; ", dir.display()))
        .collect();
    let configuration = format!(
        "daemon off; master_process off; pid {dir}/nginx.pid; error_log {dir}/nginx.log crit;
        events {{ worker_connections 1024; }}
        http {{ access_log off; {temporary} upstream etcd {{ {members} }}
        server {{ listen {listen} http2; location / {{ grpc_pass grpc://etcd; }} }} }}",
        dir = dir.display()
    );
    let file = dir.join("nginx.conf");
    std::fs::write(&file, configuration).unwrap();
    ["nginx".into(), "-p".into(), dir.display().to_string(), "-c".into(), file.display().to_string()]
}
