// For each line of input: locks and unlocks Go's concurrency.Mutex once, and prints how long each took.
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"go.etcd.io/etcd/clientv3"
	"go.etcd.io/etcd/clientv3/concurrency"
)

func main() {
	client, err := clientv3.New(clientv3.Config{Endpoints: strings.Split(os.Args[1], ",")})
	check(err)
	session, err := concurrency.NewSession(client)
	check(err)
	mutex := concurrency.NewMutex(session, os.Args[2])
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		began := time.Now()
		check(mutex.Lock(context.Background()))
		locked := time.Now()
		check(mutex.Unlock(context.Background()))
		fmt.Println(locked.Sub(began).Nanoseconds(), time.Since(locked).Nanoseconds())
	}
	check(session.Close())
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
