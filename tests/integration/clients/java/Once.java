// One request to each URL with Java's own HttpClient, in the order given, each on a connection of its own.
//
//     java Once.java HTTP_2 CA.crt URL...
//
// Prints a line for each: "ok" and the body, or "failed" and why, separated by a tab.

import java.io.FileInputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.time.Duration;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

public class Once {
    public static void main(String[] arguments) throws Exception {
        HttpClient.Version version = HttpClient.Version.valueOf(arguments[0]);
        SSLContext trusting = trusting(arguments[1]);
        for (int at = 2; at < arguments.length; at++) {
            // A client of its own, so that nothing is remembered of the one before.
            HttpClient client = HttpClient.newBuilder().version(version).sslContext(trusting).build();
            HttpRequest request =
                HttpRequest.newBuilder(URI.create(arguments[at])).timeout(Duration.ofSeconds(10)).build();
            try {
                System.out.println("ok\t" + client.send(request, HttpResponse.BodyHandlers.ofString()).body());
            } catch (java.io.IOException error) {
                System.out.println("failed\t" + error.toString().replace('\n', ' '));
            }
        }
    }

    private static SSLContext trusting(String file) throws Exception {
        KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
        store.load(null);
        try (FileInputStream stream = new FileInputStream(file)) {
            store.setCertificateEntry("root", CertificateFactory.getInstance("X.509").generateCertificate(stream));
        }
        TrustManagerFactory managers = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        managers.init(store);
        SSLContext made = SSLContext.getInstance("TLS");
        made.init(null, managers.getTrustManagers(), null);
        return made;
    }
}
