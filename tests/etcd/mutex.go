// Takes the lock of Go's concurrency package, prints its key, and keeps it until it is interrupted.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"go.etcd.io/etcd/clientv3"
	"go.etcd.io/etcd/clientv3/concurrency"
)

func main() {
	client, err := clientv3.New(clientv3.Config{Endpoints: strings.Split(os.Args[1], ",")})
	check(err)
	session, err := concurrency.NewSession(client, concurrency.WithTTL(5))
	check(err)
	mutex := concurrency.NewMutex(session, os.Args[2])
	check(mutex.Lock(context.Background()))
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt)
	fmt.Println(mutex.Key())
	<-interrupted
	check(mutex.Unlock(context.Background()))
	check(session.Close())
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
