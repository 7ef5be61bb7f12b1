"""SSH servers that are written in Python: servers.py NAME PORT HOST_KEY AUTHORIZED_KEY

Each runs a command once its input has ended.
"""

import asyncio
import base64
import socket
import subprocess
import sys
import threading

name, port, host_key, authorized = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]


def serve_by_paramiko():
    import paramiko

    with open(authorized) as file:
        allowed = base64.b64decode(file.read().split()[1])

    class Server(paramiko.ServerInterface):
        def get_allowed_auths(self, username):
            return "publickey"

        def check_auth_publickey(self, username, key):
            return paramiko.AUTH_SUCCESSFUL if key.asbytes() == allowed else paramiko.AUTH_FAILED

        def check_channel_request(self, kind, channel):
            return paramiko.OPEN_SUCCEEDED

        def check_channel_exec_request(self, channel, command):
            threading.Thread(target=run, args=(channel, command), daemon=True).start()
            return True

    def run(channel, command):
        done = subprocess.run(command, shell=True, input=channel.makefile("rb").read(), stdout=subprocess.PIPE)
        channel.sendall(done.stdout)
        channel.send_exit_status(done.returncode)
        channel.close()

    def connection(client):
        transport = paramiko.Transport(client)
        transport.add_server_key(paramiko.Ed25519Key(filename=host_key))
        try:
            transport.start_server(server=Server())
        except (paramiko.SSHException, EOFError):
            pass

    listener = socket.create_server(("127.0.0.1", port))
    while True:
        threading.Thread(target=connection, args=(listener.accept()[0],), daemon=True).start()


def serve_by_asyncssh():
    import asyncssh

    async def run(process):
        given = await process.stdin.read()
        done = subprocess.run(process.command, shell=True, input=given, stdout=subprocess.PIPE)
        process.stdout.write(done.stdout)
        process.exit(done.returncode)

    async def serve():
        await asyncssh.listen(
            "127.0.0.1", port, server_host_keys=[host_key], authorized_client_keys=authorized,
            process_factory=run, encoding=None,
        )
        await asyncio.Event().wait()

    asyncio.run(serve())


{"paramiko": serve_by_paramiko, "asyncssh": serve_by_asyncssh}[name]()
