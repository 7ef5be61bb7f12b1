#!/bin/bash
# The calls that the official CLI makes for the commands of the recipe, re-stated with curl and jq.
# $OFFICIAL is the script that it runs on a VM.
set -euo pipefail

api() { curl -fsS -H "Authorization: Bearer $KERNEL_API_KEY" -H 'Content-Type: application/json' "$@"; }

case "$1 $2" in
"browsers create") # --timeout SECONDS -o json
  api -d "{\"timeout_seconds\":$4}" "$KERNEL_BASE_URL/browsers"
  ;;
"browsers delete") # ID
  api -X DELETE "$KERNEL_BASE_URL/browsers/$3"
  ;;
"browsers ssh") # ID -i KEY --setup-only -o json
  id=$3 key=$5
  # The VM's domain is in the token of the CDP URL: base64url without padding.
  domain=$(api "$KERNEL_BASE_URL/browsers/$id" | jq -r '.cdp_ws_url | capture("jwt=(?<token>[^&]+)").token |
    split(".")[1] | gsub("-"; "+") | gsub("_"; "/") | . + "=" * ((4 - length % 4) % 4) | @base64d |
    fromjson | .session.fqdn')
  call=$(jq -n --arg script "$OFFICIAL" --arg public "$(cat "$key.pub")" '{command: "/bin/bash",
    args: ["-c", $script, "official", $public], as_root: true, timeout_sec: 120}')
  ended=$(api -d "$call" "$KERNEL_BASE_URL/browsers/$id/process/exec")
  if [ "$(jq .exit_code <<<"$ended")" != 0 ]; then
    jq -r '.stderr_b64 | @base64d' <<<"$ended" >&2
    exit 1
  fi
  proxy="websocat --binary wss://$domain:2222"
  jq -n --arg domain "$domain" --arg id "$id" --arg key "$key" --arg proxy "$proxy" '{vm_domain: $domain,
    session_id: $id, ssh_key_file: $key, proxy_command: $proxy, ssh_command: ("ssh -o '\''ProxyCommand=" + $proxy +
    "'\'' -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -i " + $key +
    " root@localhost")}'
  ;;
*) exit 2 ;;
esac
