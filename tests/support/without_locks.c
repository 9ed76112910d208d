/* Makes every file of a process one of a drive without locks, as some network drives are: compiled into a library that
 * without_locks.py has the process load before all others (LD_PRELOAD). */

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <unistd.h>

int flock(int file, int operation) {
    errno = ENOLCK;
    return -1;
}

#define AS_FCNTL(name)                                                           \
    int name(int file, int command, ...) {                                       \
        va_list rest;                                                            \
        va_start(rest, command);                                                 \
        void *argument = va_arg(rest, void *);                                   \
        va_end(rest);                                                            \
        if (command == F_SETLK || command == F_SETLKW || command == F_GETLK) {   \
            errno = ENOLCK;                                                      \
            return -1;                                                           \
        }                                                                        \
        return syscall(SYS_fcntl, file, command, argument);                      \
    }

AS_FCNTL(fcntl)
AS_FCNTL(fcntl64)
