use api_grpc::services::images as api;
use api_grpc::services::images::images_server::Images;
use api_grpc::{decode, encode};
use metadata::{Image, Metadata};
use model::filter::Filters;
use tonic::{Request, Response, Status};

use crate::descriptor::{decode_descriptor, encode_descriptor};
use crate::request::{namespaced, scoped};
use crate::{Engines, Error};

/// The service `Images`: names for blobs.
pub(crate) struct ImagesService {
    pub(crate) engines: Engines,
}

#[tonic::async_trait]
impl Images for ImagesService {
    async fn get(&self, request: Request<api::GetImageRequest>) -> Result<Response<api::GetImageResponse>, Status> {
        let (namespace, request) = namespaced(request)?;
        let found = self.engines.metadata(move |metadata| metadata.images().get(&namespace, &request.name)).await?;
        Ok(Response::new(api::GetImageResponse { image: Some(encode_image(found)) }))
    }

    async fn list(
        &self,
        request: Request<api::ListImagesRequest>,
    ) -> Result<Response<api::ListImagesResponse>, Status> {
        let (namespace, request) = namespaced(request)?;
        let filters = Filters::parse(&request.filters).map_err(Error::Filter)?;
        let found = self.engines.metadata(move |metadata| metadata.images().list(&namespace, &filters)).await?;
        Ok(Response::new(api::ListImagesResponse { images: found.into_iter().map(encode_image).collect() }))
    }

    async fn create(
        &self,
        request: Request<api::CreateImageRequest>,
    ) -> Result<Response<api::CreateImageResponse>, Status> {
        let (scope, request) = scoped(request)?;
        let image = decode_image(request.image.ok_or(Error::Required("image"))?);
        let epoch = request.source_date_epoch.map(|time| decode::timestamp(Some(time)));
        let created = self.engines.metadata(move |metadata| metadata.images().create(&scope, image, epoch)).await?;
        Ok(Response::new(api::CreateImageResponse { image: Some(encode_image(created)) }))
    }

    async fn update(
        &self,
        request: Request<api::UpdateImageRequest>,
    ) -> Result<Response<api::UpdateImageResponse>, Status> {
        let (scope, request) = scoped(request)?;
        let image = decode_image(request.image.ok_or(Error::Required("image"))?);
        let mask = request.update_mask.unwrap_or_default().paths;
        let epoch = request.source_date_epoch.map(|time| decode::timestamp(Some(time)));
        let updated =
            self.engines.metadata(move |metadata| metadata.images().update(&scope, &image, &mask, epoch)).await?;
        Ok(Response::new(api::UpdateImageResponse { image: Some(encode_image(updated)) }))
    }

    async fn delete(&self, request: Request<api::DeleteImageRequest>) -> Result<Response<()>, Status> {
        let (scope, request) = scoped(request)?;
        let target = request.target.map(|target| target.digest).unwrap_or_default();
        self.engines.metadata(move |metadata| metadata.images().delete(&scope, &request.name, &target)).await?;
        if request.sync {
            self.engines.lengthy(Metadata::collect_and_wait).await?;
        }
        Ok(Response::new(()))
    }
}

fn decode_image(image: api::Image) -> Image {
    Image {
        name: image.name,
        labels: image.labels,
        target: decode_descriptor(image.target.unwrap_or_default()),
        // Timestamps of clients are ignored.
        ..Image::default()
    }
}

fn encode_image(image: Image) -> api::Image {
    api::Image {
        name: image.name,
        labels: image.labels,
        target: Some(encode_descriptor(image.target)),
        created_at: encode::timestamp(image.created_at),
        updated_at: encode::timestamp(image.updated_at),
    }
}
