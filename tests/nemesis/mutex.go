// A client whose locks are those of Go's concurrency package. Writes its turns as tests/nemesis/history.rs reads them.
package main

import (
	"context"
	"encoding/binary"
	"math/rand"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"go.etcd.io/etcd/clientv3"
	"go.etcd.io/etcd/clientv3/concurrency"
)

const (
	waiting, failed, held, released, lost = 0, 4, 5, 6, 8

	other = 7

	clockBoottime = 7
)

var (
	journal *os.File
	rows    int64
	lease   int
	client  uint64
	parent  = os.Getppid()
)

func now() uint64 {
	var time syscall.Timespec
	syscall.Syscall(syscall.SYS_CLOCK_GETTIME, clockBoottime, uintptr(unsafe.Pointer(&time)), 0)
	return uint64(time.Nano())
}

type turn struct {
	row                               int64
	lock, outcome                     uint64
	token, called, first, last, ended uint64
}

func (t *turn) write() {
	kind := t.lock | other<<16 | t.outcome<<24
	words := []uint64{kind, t.token, uint64(os.Getpid()) | client<<32, uint64(lease) * 1e9, t.called, t.first, t.last, t.ended}
	row := make([]byte, 64)
	for at, word := range words {
		binary.LittleEndian.PutUint64(row[at*8:], word)
	}
	if _, err := journal.WriteAt(row, t.row*64); err != nil {
		panic(err)
	}
}

func (t *turn) end(outcome uint64) {
	t.outcome, t.ended = outcome, now()
	t.write()
}

func isOver() bool {
	_, err := os.Stat(filepath.Join(filepath.Dir(os.Args[1]), "over"))
	return err == nil || os.Getppid() != parent
}

func isHeld(session *concurrency.Session) bool {
	select {
	case <-session.Done():
		return false
	default:
		return true
	}
}

// hold keeps the lock for a moment, or for two leases: longer than ours, for it has only short moments in which it is caught.
func (t *turn) hold(session *concurrency.Session) uint64 {
	length := time.Duration(rand.Intn(60)) * time.Millisecond
	if rand.Intn(3) == 0 {
		length = 2 * time.Duration(lease) * time.Second
	}
	for until := now() + uint64(length); ; time.Sleep(5 * time.Millisecond) {
		asked := now()
		if !isHeld(session) {
			return lost
		}
		t.outcome, t.last = held, asked
		if t.first == 0 {
			t.first = now()
		}
		t.write()
		if now() > until || isOver() {
			return released
		}
	}
}

func take(session *concurrency.Session, lock uint64, name string) {
	t := turn{row: atomic.AddInt64(&rows, 1) - 1, lock: lock, called: now()}
	t.write()
	mutex := concurrency.NewMutex(session, name)
	limit, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := mutex.Lock(limit); err != nil {
		t.end(failed)
		return
	}
	t.token = uint64(mutex.Header().Revision)
	outcome := t.hold(session)
	unlock, cancelUnlock := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancelUnlock()
	mutex.Unlock(unlock)
	t.end(outcome)
}

// work takes one lock again and again, with one session after another.
func work(client *clientv3.Client, lock uint64, name string, done chan bool) {
	for !isOver() {
		limit, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		grant, err := client.Grant(limit, int64(lease))
		cancel()
		if err != nil {
			continue
		}
		session, err := concurrency.NewSession(client, concurrency.WithLease(grant.ID), concurrency.WithTTL(lease))
		if err != nil {
			continue
		}
		for isHeld(session) && !isOver() {
			take(session, lock, name)
			time.Sleep(time.Duration(rand.Intn(80)) * time.Millisecond)
		}
		session.Close()
	}
	done <- true
}

func main() {
	var err error
	journal, err = os.Create(os.Args[1])
	if err != nil {
		panic(err)
	}
	parts := regexp.MustCompile(`^etcd://(.*)/\{\}.*ttl=(\d+)s$`).FindStringSubmatch(os.Args[2])
	lease, _ = strconv.Atoi(parts[2])
	client, _ = strconv.ParseUint(os.Args[3], 10, 32)
	seed, _ := strconv.ParseInt(os.Args[4], 10, 64)
	rand.Seed(seed)
	cluster, err := clientv3.New(clientv3.Config{
		Endpoints: strings.Split(parts[1], ","), DialKeepAliveTime: time.Second, DialKeepAliveTimeout: time.Second,
	})
	if err != nil {
		panic(err)
	}
	done := make(chan bool)
	for lock, name := range []string{"alpha", "beta"} {
		go work(cluster, uint64(lock), name, done)
	}
	<-done
	<-done
}
