/*
 * Preloaded into INN's shlock(1). It makes the lock file look an hour older: shlock(1) calls fstat(2) for no other
 * file. shlock(1) breaks no lock that is younger than 30 seconds, and no lock of this test gets that old.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/stat.h>

int fstat(int fd, struct stat *found)
{
    int result = fstatat(fd, "", found, AT_EMPTY_PATH);
    found->st_ctime -= 3600;
    return result;
}
