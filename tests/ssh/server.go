// An SSH server with Go's x/crypto: server PORT HOST_KEY AUTHORIZED_KEY
//
// It runs a command once its input has ended.
package main

import (
	"bytes"
	"errors"
	"io"
	"log"
	"net"
	"os"
	"os/exec"

	"golang.org/x/crypto/ssh"
)

func main() {
	port, hostKey, authorized := os.Args[1], read(os.Args[2]), read(os.Args[3])
	allowed, _, _, _, err := ssh.ParseAuthorizedKey(authorized)
	check(err)
	signer, err := ssh.ParsePrivateKey(hostKey)
	check(err)
	config := &ssh.ServerConfig{
		PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			if bytes.Equal(key.Marshal(), allowed.Marshal()) {
				return nil, nil
			}
			return nil, errors.New("another key")
		},
	}
	config.AddHostKey(signer)
	listener, err := net.Listen("tcp", "127.0.0.1:"+port)
	check(err)
	for {
		stream, err := listener.Accept()
		check(err)
		go serve(stream, config)
	}
}

func serve(stream net.Conn, config *ssh.ServerConfig) {
	_, channels, requests, err := ssh.NewServerConn(stream, config)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	for asked := range channels {
		channel, requests, err := asked.Accept()
		if err == nil {
			go run(channel, requests)
		}
	}
}

func run(channel ssh.Channel, requests <-chan *ssh.Request) {
	for request := range requests {
		var asked struct{ Command string }
		if request.Type != "exec" || ssh.Unmarshal(request.Payload, &asked) != nil {
			request.Reply(false, nil)
			continue
		}
		request.Reply(true, nil)
		input, _ := io.ReadAll(channel)
		command := exec.Command("sh", "-c", asked.Command)
		command.Stdin, command.Stdout = bytes.NewReader(input), channel
		command.Run()
		status := struct{ Code uint32 }{uint32(command.ProcessState.ExitCode())}
		channel.SendRequest("exit-status", false, ssh.Marshal(status))
		channel.Close()
	}
}

func read(name string) []byte {
	text, err := os.ReadFile(name)
	check(err)
	return text
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
